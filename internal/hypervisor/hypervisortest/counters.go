package hypervisortest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Counters are a VM's by their names.
type Counters map[hypervisor.CounterName]uint64

// ReadCounters asks a VM for its counters.
func ReadCounters(t *testing.T, v hypervisor.VM) Counters {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all, err := v.(hypervisor.Meter).Counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c := Counters{}
	for _, counter := range all {
		if _, twice := c[counter.CounterName]; twice {
			t.Errorf("counter %v is there twice", counter.CounterName)
		}
		c[counter.CounterName] = counter.Value
	}
	return c
}

// since checks that nothing fell.
func (c Counters) since(t *testing.T, before Counters) {
	t.Helper()
	for name, n := range before {
		if c[name] < n {
			t.Errorf("counter %v fell from %d to %d", name, n, c[name])
		}
	}
}

// counters: what the VMM counts, also of a disk that has gone, and of one that did not answer for a while.
func (s *suite) counters(t *testing.T) {
	f := image(t, "counted")
	defer f.Close()
	c := s.config(t)
	c.Disks = []hypervisor.Disk{{ID: "counted", File: f}}
	v, stop := s.start(t, c)
	defer stop()
	if _, ok := v.(hypervisor.Meter); !ok {
		return
	}
	at := s.Address(0, c.Disks[0])
	wantDisk(t, v, at, "rw", "counted") // it is up
	first := ReadCounters(t, v)
	Ask(t, v, "readall %s", where(t, at))
	Ask(t, v, "write %s changed", where(t, at))
	then := ReadCounters(t, v)
	then.since(t, first)
	wanted := Counters{
		{Kind: hypervisor.Bytes, Part: hypervisor.PartDisk, Direction: hypervisor.In}:       diskSize / 2, // some of it was read before
		{Kind: hypervisor.Bytes, Part: hypervisor.PartDisk, Direction: hypervisor.Out}:      512,
		{Kind: hypervisor.Operations, Part: hypervisor.PartDisk, Direction: hypervisor.In}:  1,
		{Kind: hypervisor.Operations, Part: hypervisor.PartDisk, Direction: hypervisor.Out}: 1,
	}
	for name, least := range wanted {
		if n := then[name] - first[name]; n < least {
			t.Errorf("%v: %d more than before, want at least %d", name, n, least)
		}
	}
	s.hungMeter(t, v)
	if plugger, ok := v.(hypervisor.DiskPlugger); ok {
		if err := plugger.DetachDisk(t.Context(), "counted"); err != nil {
			t.Fatal(err)
		}
	}
	ReadCounters(t, v).since(t, then)
	stop()
	if _, err := v.(hypervisor.Meter).Counters(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("counters after the end: %v, want Unavailable", err)
	}
}

// hungMeter: a VMM that hangs is not waited for, and nothing is lost by it when it goes on.
func (s *suite) hungMeter(t *testing.T, v hypervisor.VM) {
	if err := unix.Kill(v.PID(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// A thread of it may answer until all have stopped.
	if err := unix.Waitid(unix.P_PID, v.PID(), nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := v.(hypervisor.Meter).Counters(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("counters of a VMM that hangs: %v", err)
	}
	if _, err := v.(hypervisor.Meter).Counters(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("counters of a VMM that hangs, again: %v, want Unavailable", err)
	}
	if err := unix.Kill(v.PID(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	Ask(t, v, "version")
	deadline := time.Now().Add(patience)
	for { // the answer to the old question comes when it comes
		_, err := v.(hypervisor.Meter).Counters(t.Context())
		if err == nil {
			return
		}
		if !errdefs.IsUnavailable(err) || time.Now().After(deadline) {
			t.Fatalf("after it has gone on: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
