// Package event carries what happens to sandboxes and containers to whoever listens.
//
// A [Broker] belongs to the daemon; the two managers publish, each object's events in their order, and the CRI
// server subscribes. Every event carries what its pod looked like when it happened. Publishing never blocks: a subscriber
// that falls behind is dropped and has to look at the whole state again. What happens while nobody listens, as when the
// daemon starts and finds what ended meanwhile, is kept for a few minutes. All methods may be called from any goroutine.
// The package imports nothing of ours.
package event

import (
	"slices"
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
	// At and State are the broker's: when the event was published, and what everything looked like at that moment.
	At    time.Time
	State any
}

const (
	// Backlog is how many events a subscriber may be behind, and how many are kept while there is none.
	Backlog = 1024
	// retention is how long events are kept that nobody was there to see.
	retention = 5 * time.Minute
)

// Broker hands every event to every subscriber.
type Broker struct {
	now func() time.Time

	mu       sync.Mutex
	describe func(Event) any
	subs     map[chan Event]struct{}
	// missed happened while nobody listened, the oldest first.
	missed []Event
	// holding: events wait in held until the state is whole enough to be described.
	holding bool
	held    []Event
}

// NewBroker returns a broker without subscribers.
func NewBroker() *Broker { return &Broker{now: time.Now, subs: map[chan Event]struct{}{}} }

// SetDescribe says how the state of an event is found. It is called for each event in turn, between what led to the event
// and what follows, and must not publish. Whoever publishes holds no lock that it needs.
func (b *Broker) SetDescribe(describe func(Event) any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.describe = describe
}

// Hold makes events wait until release is called, once; then they are described and published in their order.
func (b *Broker) Hold() (release func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = true
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		held := b.held
		b.holding, b.held = false, nil
		for _, e := range held {
			b.publish(e)
		}
	}
}

// Subscribe returns the events from now on, after those of the last minutes that nobody was there to see when they happened:
// every subscriber gets these, also one that comes after another. The channel is closed when the subscriber was more than
// Backlog events behind, those not counted, or after cancel, which must be called.
func (b *Broker) Subscribe() (events <-chan Event, cancel func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forget()
	ch := make(chan Event, Backlog+len(b.missed))
	for _, e := range b.missed {
		ch <- e
	}
	b.subs[ch] = struct{}{}
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.drop(ch)
	}
}

// Describe fills in the state of an event that is published later, when what it is about is no more.
func (b *Broker) Describe(e Event) Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.State == nil && b.describe != nil {
		e.State = b.describe(e)
	}
	return e
}

// Publish describes e and hands it to all subscribers.
func (b *Broker) Publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.holding {
		b.held = append(b.held, e)
		return
	}
	b.publish(e)
}

// publish is called with mu, so that states are as ordered as the events are.
func (b *Broker) publish(e Event) {
	e.At = b.now()
	if e.State == nil && b.describe != nil {
		e.State = b.describe(e)
	}
	if len(b.subs) == 0 {
		b.forget()
		b.missed = append(b.missed[max(0, len(b.missed)-Backlog+1):], e)
		return
	}
	for ch := range b.subs {
		select {
		case ch <- e:
		default:
			b.drop(ch)
		}
	}
}

// forget lets go of what is old.
func (b *Broker) forget() {
	since := b.now().Add(-retention)
	recent := slices.IndexFunc(b.missed, func(e Event) bool { return e.At.After(since) })
	if recent < 0 {
		b.missed = nil
		return
	}
	b.missed = slices.Clip(b.missed[recent:])
}

func (b *Broker) drop(ch chan Event) {
	if _, ok := b.subs[ch]; ok {
		delete(b.subs, ch)
		close(ch)
	}
}
