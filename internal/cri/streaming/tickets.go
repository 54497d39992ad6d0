package streaming

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// ticketLife is how long a URL that nobody used stays good.
	ticketLife = time.Minute
	// maxTickets bounds the URLs that were handed out and not used yet.
	maxTickets = 1000
)

// tickets are the streams that were promised, by the secret part of their URLs. Each can be claimed once.
type tickets struct {
	now  func() time.Time
	mu   sync.Mutex
	open map[string]ticket
}

type ticket struct {
	// kind is the first part of the URL's path: a URL of one kind does not open a stream of another.
	kind    string
	expires time.Time
	serve   http.HandlerFunc
}

func newTickets(now func() time.Time) *tickets {
	return &tickets{now: now, open: map[string]ticket{}}
}

// issue returns the path under which serve will answer one request. ResourceExhausted when too many wait already.
func (t *tickets) issue(kind string, serve http.HandlerFunc) (path string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for token, old := range t.open {
		if now.After(old.expires) {
			delete(t.open, token)
		}
	}
	if len(t.open) >= maxTickets {
		return "", fmt.Errorf("%s: %d streams were asked for and not opened yet, try again later: %w", kind, len(t.open), errdefs.ErrResourceExhausted)
	}
	token := rand.Text()
	t.open[token] = ticket{kind: kind, expires: now.Add(ticketLife), serve: serve}
	return kind + "/" + token, nil
}

// claim returns what a ticket is good for, and takes it back.
func (t *tickets) claim(kind, token string) (serve http.HandlerFunc, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	found, ok := t.open[token]
	if !ok || found.kind != kind {
		return nil, false
	}
	delete(t.open, token)
	return found.serve, !t.now().After(found.expires)
}
