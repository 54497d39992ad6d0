package vmm

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

func TestMeter(t *testing.T) {
	read := hypervisor.CounterName{Kind: hypervisor.Bytes, Part: hypervisor.PartDisk, Direction: hypervisor.In}
	calls := hypervisor.CounterName{Kind: hypervisor.Failures, Part: hypervisor.PartAPI}
	m := NewMeter(func(context.Context) error { return nil })
	sums := func() (uint64, uint64) {
		t.Helper()
		all, err := m.Counters(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byName := map[hypervisor.CounterName]uint64{}
		for _, c := range all {
			byName[c.CounterName] = c.Value
		}
		return byName[read], byName[calls]
	}
	type name = hypervisor.CounterName
	for _, step := range []struct {
		reading Reading
		want    uint64
	}{
		{Reading{"a": {read: 10}}, 10},
		{Reading{"a": {read: 15}, "b": {read: 1}}, 16},
		{Reading{"b": {read: 3}}, 18}, // a has gone
		{Reading{"a": {read: 2}, "b": {read: 3}}, 20},
		{Reading{"a": {read: 1}, "b": {read: 3}}, 21}, // another a
		{Reading{"a": {read: math.MaxUint64}, "b": {read: math.MaxUint64}}, math.MaxUint64},
		{Reading{}, math.MaxUint64},
	} {
		m.Observe(step.reading)
		if got, _ := sums(); got != step.want {
			t.Errorf("after %v: %d, want %d", step.reading, got, step.want)
		}
	}
	m.Add(map[name]uint64{calls: 2})
	m.Add(map[name]uint64{calls: 3})
	if _, got := sums(); got != 5 {
		t.Errorf("2 and 3 are %d", got)
	}
	m.Close()
	if _, err := m.Counters(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("after the end: %v", err)
	}
}

// TestMeterHangs: a question that is not answered is asked once, and costs one caller its time.
func TestMeterHangs(t *testing.T) {
	asked, answer := make(chan struct{}, 10), make(chan error)
	m := NewMeter(func(context.Context) error {
		asked <- struct{}{}
		return <-answer
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := m.Counters(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an answer: %v", err)
	}
	for range 3 {
		if _, err := m.Counters(t.Context()); !errdefs.IsUnavailable(err) {
			t.Errorf("again: %v", err)
		}
	}
	flight, _ := m.question()
	answer <- nil
	<-flight.over
	refused := errors.New("no")
	go func() { answer <- refused }()
	if _, err := m.Counters(t.Context()); !errors.Is(err, refused) {
		t.Errorf("a refusal: %v", err)
	}
	m.Close()
	if n := len(asked); n != 2 {
		t.Errorf("it was asked %d times", n)
	}
}
