package vm

import (
	"context"
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// watchClock calls changed whenever the host's wall clock was set or has jumped over a suspend of the host, until ctx
// ends. It waits for the kernel's event and costs nothing meanwhile.
func watchClock(ctx context.Context, changed func()) error {
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
	never := unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt32}}
	arm := func(fd uintptr) {
		err = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil)
	}
	var expirations [8]byte
	for {
		if closed := raw.Control(arm); closed != nil || err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return errors.Join(closed, err)
		}
		_, err = f.Read(expirations[:])
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECANCELED):
			changed()
		case err != nil:
			return err
		}
	}
}
