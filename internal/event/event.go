// Package event carries what happens to sandboxes and containers to whoever listens.
//
// A [Broker] belongs to the daemon; the two managers publish, each object's events in their order, and the CRI
// server subscribes. Publishing never blocks: a subscriber that falls behind is dropped and has to look at the
// whole state again. All methods may be called from any goroutine. The package imports nothing of ours.
package event

import (
	"sync"
	"time"
)

// Kind of an event.
type Kind string

const (
	Created Kind = "created"
	Started Kind = "started"
	Stopped Kind = "stopped"
	Deleted Kind = "deleted"
)

// Event is one thing that happened.
type Event struct {
	Kind Kind
	// ID of the container, or of the sandbox for its own events; then it equals SandboxID.
	ID        string
	SandboxID string
	At        time.Time
}

// Backlog is how many events a subscriber may be behind.
const Backlog = 1024

// Broker hands every event to every subscriber.
type Broker struct {
	mu   sync.Mutex
	subs map[chan Event]struct{}
}

// NewBroker returns a broker without subscribers.
func NewBroker() *Broker { return &Broker{subs: map[chan Event]struct{}{}} }

// Subscribe returns the events from now on. The channel is closed when the subscriber was more than Backlog
// events behind, or after cancel, which must be called.
func (b *Broker) Subscribe() (events <-chan Event, cancel func()) {
	ch := make(chan Event, Backlog)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs[ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.drop(ch)
	}
}

// Publish hands e to all subscribers.
func (b *Broker) Publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ch := range b.subs {
		select {
		case ch <- e:
		default:
			b.drop(ch)
		}
	}
}

func (b *Broker) drop(ch chan Event) {
	if _, ok := b.subs[ch]; ok {
		delete(b.subs, ch)
		close(ch)
	}
}
