package event

import (
	"strconv"
	"testing"
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
		if a, z := <-one, <-two; a.ID != strconv.Itoa(i) || z.ID != a.ID {
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
