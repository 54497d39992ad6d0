package vm

import (
	"context"
	"net"
	"path"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agentclient"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

// TestWatchClock: it wakes in intervals, and ends with its context.
func TestWatchClock(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	woken, done := make(chan bool), make(chan error, 1)
	go func() {
		done <- watchClock(ctx, time.Millisecond, unix.TimerfdSettime, func(set bool) { woken <- set })
	}()
	for range 3 {
		<-woken
	}
	cancel()
	for {
		select {
		case <-woken: // it was about to
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}

// TestClockSetWhileAwake: the kernel says when the timer is armed that the clock was set while nobody waited for it.
func TestClockSetWhileAwake(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	armed := 0
	settime := func(fd, flags int, next, old *unix.ItimerSpec) error {
		armed++
		err := unix.TimerfdSettime(fd, flags, next, old)
		if armed == 2 {
			err = unix.ECANCELED // the timer is armed all the same
		}
		return err
	}
	var woken []bool
	err := watchClock(ctx, time.Millisecond, settime, func(set bool) {
		if woken = append(woken, set); len(woken) == 3 {
			cancel()
		}
	})
	if err != nil || len(woken) != 3 || !woken[1] {
		t.Errorf("woken %v, %v", woken, err)
	}
}

func TestWatchClockEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- watchClock(ctx, time.Hour, unix.TimerfdSettime, func(bool) {}) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestCorrection(t *testing.T) {
	const ms = time.Millisecond
	for _, tt := range []struct {
		took, behind time.Duration // behind the middle of the question
		by           time.Duration
		jump         bool
	}{
		{2 * ms, 0, 0, false},
		{2 * ms, ms, 0, false},
		{2 * ms, 3 * ms, 3 * ms, false},
		{2 * ms, -3 * ms, -3 * ms, false},
		{2 * ms, 600 * ms, 600 * ms, true},
		{2 * ms, -time.Hour, -time.Hour, true},
		{2 * time.Second, 900 * ms, 0, false}, // nobody knows
	} {
		asked := time.Now()
		if by, jump := correction(asked, tt.took, asked.Add(tt.took/2-tt.behind).Round(0)); by != tt.by || jump != tt.jump {
			t.Errorf("behind by %v, asked for %v: %v, %v", tt.behind, tt.took, by, jump)
		}
	}
}

// TestCompareClock: a clock that is right is left alone, a small difference is made up for, and after a large one it is set.
func TestCompareClock(t *testing.T) {
	for _, tt := range []struct {
		name   string
		behind time.Duration
		do     func(*VM) error
		want   []string
	}{
		{"right", 0, func(v *VM) error { return v.compareClock(t.Context()) }, []string{"AdjustClock"}},
		{"far behind", time.Hour, func(v *VM) error { return v.compareClock(t.Context()) }, []string{"AdjustClock", "SetClock"}},
		// How long the question took decides what is small, and so these are not asked for.
		{"behind", 0, func(v *VM) error { return v.correctClock(t.Context(), time.Millisecond, false) }, []string{"AdjustClock"}},
		{"before", 0, func(v *VM) error { return v.correctClock(t.Context(), -time.Millisecond, false) }, []string{"AdjustClock"}},
		{"nothing", 0, func(v *VM) error { return v.correctClock(t.Context(), 0, false) }, nil},
	} {
		var called []string
		agent := &vmtest.Agent{Answer: func(method string, answer any) any {
			if r, ok := answer.(*agentv1.AdjustClockResponse); ok && tt.behind != 0 {
				r.Clock = timestamppb.New(time.Now().Add(-tt.behind))
			}
			called = append(called, path.Base(method))
			return answer
		}}
		c, err := agentclient.Connect(t.Context(), func(_ context.Context, port uint32) (net.Conn, error) {
			host, guest, err := vmtest.Pair()
			if err == nil {
				agent.Serve(port, guest)
			}
			return host, err
		}, 0)
		if err != nil {
			t.Fatal(err)
		}
		called = nil
		err = tt.do(&VM{agent: c})
		c.Close()
		if err != nil || !slices.Equal(called, tt.want) {
			t.Errorf("%s: %v, %v, want %v", tt.name, called, err, tt.want)
		}
	}
}
