package streaming

import (
	"net/http"
	"path"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestTickets(t *testing.T) {
	now := time.Unix(1000, 0)
	tickets := newTickets(func() time.Time { return now })
	issue := func() string {
		t.Helper()
		where, err := tickets.issue(execKind, func(http.ResponseWriter, *http.Request) {})
		if err != nil {
			t.Fatal(err)
		}
		return path.Base(where)
	}
	once := issue()
	if _, ok := tickets.claim(attachKind, once); ok {
		t.Error("a ticket for an exec opens an attach")
	}
	if _, ok := tickets.claim(execKind, once); !ok {
		t.Error("a ticket is refused")
	}
	if _, ok := tickets.claim(execKind, once); ok {
		t.Error("a ticket is good for two")
	}
	late := issue()
	now = now.Add(ticketLife + time.Second)
	if _, ok := tickets.claim(execKind, late); ok {
		t.Error("a ticket lasts for ever")
	}
	for range maxTickets {
		issue()
	}
	if _, err := tickets.issue(execKind, nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v", err)
	}
	now = now.Add(ticketLife + time.Second)
	issue() // those that nobody came for made room
}
