package event

import (
	"strconv"
	"testing"
	"time"
)

func TestOrderAndFanOut(t *testing.T) {
	b := NewBroker()
	one, cancelOne := b.Subscribe()
	two, cancelTwo := b.Subscribe()
	defer cancelTwo()
	for i := range 3 {
		b.Publish(Event{ID: strconv.Itoa(i)})
	}
	for i := range 3 {
		if a, z := <-one, <-two; a.ID != strconv.Itoa(i) || z.ID != a.ID || a.At.IsZero() {
			t.Errorf("event %d: %v, %v", i, a, z)
		}
	}
	cancelOne()
	cancelOne()
	if _, open := <-one; open {
		t.Error("open after cancel")
	}
	b.Publish(Event{ID: "x"})
	if e := <-two; e.ID != "x" {
		t.Error(e)
	}
}

func TestSlowSubscriberIsDropped(t *testing.T) {
	b := NewBroker()
	events, cancel := b.Subscribe()
	defer cancel()
	for range Backlog + 1 {
		b.Publish(Event{})
	}
	n := 0
	for range events {
		n++
	}
	if n != Backlog {
		t.Errorf("%d events before the end, want %d", n, Backlog)
	}
}

// TestState: an event has the state of its own moment, also one that was described before.
func TestState(t *testing.T) {
	b := NewBroker()
	state := 0
	b.SetDescribe(func(Event) any { return state })
	events, cancel := b.Subscribe()
	defer cancel()
	b.Publish(Event{ID: "a"})
	state = 1
	deleted := b.Describe(Event{ID: "b"})
	state = 2
	b.Publish(deleted)
	b.Publish(Event{ID: "c"})
	for _, want := range []struct {
		id    string
		state int
	}{{"a", 0}, {"b", 1}, {"c", 2}} {
		if e := <-events; e.ID != want.id || e.State != want.state {
			t.Errorf("got %+v, want %+v", e, want)
		}
	}
}

// TestHeldEvents are described when they are released, and keep their order.
func TestHeldEvents(t *testing.T) {
	b := NewBroker()
	state := "half"
	b.SetDescribe(func(Event) any { return state })
	release := b.Hold()
	b.Publish(Event{ID: "1"})
	b.Publish(Event{ID: "2"})
	events, cancel := b.Subscribe()
	defer cancel()
	select {
	case e := <-events:
		t.Errorf("%+v came through", e)
	default:
	}
	state = "whole"
	release()
	b.Publish(Event{ID: "3"})
	for _, id := range []string{"1", "2", "3"} {
		if e := <-events; e.ID != id || e.State != "whole" {
			t.Errorf("got %+v", e)
		}
	}
}

// TestMissedEvents: what happens while nobody listens is there for who comes within some minutes.
func TestMissedEvents(t *testing.T) {
	b := NewBroker()
	now := time.Unix(1000, 0)
	b.now = func() time.Time { return now }
	ids := func() (got []string) {
		events, cancel := b.Subscribe()
		cancel()
		for e := range events {
			got = append(got, e.ID)
		}
		return got
	}
	for i := range 2 * Backlog {
		b.Publish(Event{ID: strconv.Itoa(i)})
	}
	if got := ids(); len(got) != Backlog || got[0] != strconv.Itoa(Backlog) || got[Backlog-1] != strconv.Itoa(2*Backlog-1) {
		t.Errorf("%d events", len(got))
	}
	now = now.Add(retention - time.Second)
	b.Publish(Event{ID: "late"})
	now = now.Add(2 * time.Second)
	if got := ids(); len(got) != 1 || got[0] != "late" {
		t.Errorf("after a while: %d events", len(got))
	}
	// Who listens already gets nothing twice, and what somebody saw is not kept.
	events, cancel := b.Subscribe()
	<-events
	b.Publish(Event{ID: "seen"})
	if e := <-events; e.ID != "seen" {
		t.Errorf("got %+v", e)
	}
	cancel()
	if got := ids(); len(got) != 1 || got[0] != "late" {
		t.Errorf("got %v", got)
	}
	now = now.Add(retention)
	if got := ids(); len(got) != 0 {
		t.Errorf("at last: %v", got)
	}
}
