package vm

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

const (
	// clockInterval is how often a guest's clock is compared with the host's.
	clockInterval = time.Minute
	// clockJump is the difference from which on a guest's clock is set. A smaller one is made up for without a jump, which takes
	// the kernel 2000 times as long.
	clockJump = 500 * time.Millisecond
)

// keepClock has the guest's clock follow the host's until ctx ends. The two drift apart, since nobody corrects the guest's
// as NTP does the host's, and after a pause the guest's may be far behind.
func (v *VM) keepClock(ctx context.Context) error {
	return watchClock(ctx, clockInterval, unix.TimerfdSettime, func(set bool) {
		// What fails is tried again in a while, and the guest's end is told elsewhere.
		if set {
			_ = v.setClock(ctx)
		} else if v.agent.Has(agentv1.FeatureClock) {
			_ = v.compareClock(ctx)
		}
	})
}

func (v *VM) setClock(ctx context.Context) error {
	return v.agent.SetClock(ctx, &agentv1.SetClockRequest{Clock: timestamppb.Now()})
}

// compareClock corrects the guest's clock where it differs from the host's by more than can be the way of the question.
func (v *VM) compareClock(ctx context.Context) error {
	asked := time.Now()
	guest, err := v.agent.AdjustClock(ctx, 0)
	if err != nil {
		return err
	}
	by, jump := correction(asked, time.Since(asked), guest)
	return v.correctClock(ctx, by, jump)
}

// correctClock has the guest do what correction says.
func (v *VM) correctClock(ctx context.Context, by time.Duration, jump bool) (err error) {
	switch {
	case jump:
		return v.setClock(ctx)
	case by != 0:
		_, err = v.agent.AdjustClock(ctx, by)
	}
	return err
}

// correction is how much a clock is behind that showed guest at some time while it was asked; 0 where it may be right. jump: it
// has to be set.
func correction(asked time.Time, took time.Duration, guest time.Time) (by time.Duration, jump bool) {
	uncertain := took / 2
	by = asked.Add(uncertain).Sub(guest)
	if by.Abs() <= uncertain {
		return 0, false
	}
	return by, by.Abs() > clockJump
}

// settime is timerfd_settime.
type settime func(fd, flags int, next, old *unix.ItimerSpec) error

// watchClock calls wake in intervals of the host's wall clock, and with true whenever that was set or has jumped over a suspend
// of the host, until ctx ends. It waits for the kernel's event and costs nothing meanwhile.
func watchClock(ctx context.Context, interval time.Duration, settime settime, wake func(set bool)) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "timerfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	arm := func(fd uintptr) {
		var next unix.Timespec
		if next, err = unix.TimeToTimespec(time.Now().Add(interval)); err == nil {
			err = settime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &unix.ItimerSpec{Value: next}, nil)
		}
	}
	var expirations [8]byte
	for {
		closed := raw.Control(arm)
		if closed == nil && err == nil {
			_, err = f.Read(expirations[:])
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case closed != nil:
			return closed
		case err == nil:
			wake(false)
		case errors.Is(err, unix.ECANCELED): // arming the timer says so too, where the clock was set since it was armed before
			wake(true)
		default:
			return err
		}
	}
}
