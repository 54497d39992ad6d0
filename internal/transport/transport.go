package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// The kernel parameter that tells the guest which carrier to listen on.
const (
	Param      = "pistis.transport="
	KindVSOCK  = "vsock"
	KindSerial = "serial"
	// KindPipe is one vsock stream, to PipePort, that carries all.
	KindPipe = "vsock-pipe"
)

// PipePort is where a guest that was told KindPipe waits for its host.
const PipePort = 1023

// DirectPort is the guest port of streams that are connections of their own wherever the carrier has such, also beside a pipe that
// carries all others. These may end both ways at once.
const DirectPort = 1026

// retryInterval is the pause between two attempts to reach a guest that does not listen yet. The carriers
// give no event for that.
const retryInterval = 20 * time.Millisecond

// errRefused is wrapped by an attempt that may succeed later.
var errRefused = errors.New("nobody listens")

// retry calls attempt until it succeeds, fails with something else than errRefused, or ctx ends.
func retry(ctx context.Context, port uint32, attempt func(context.Context) (net.Conn, error)) (net.Conn, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	last := errors.New("no answer")
	for {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("dial guest port %d: %w (last attempt: %w)", port, context.Cause(ctx), last)
		case <-timer.C:
		}
		conn, err := attempt(ctx)
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil:
			// The attempt was cut short; the one before it knows more.
		case errors.Is(err, errRefused):
			last = err
		default:
			return nil, fmt.Errorf("dial guest port %d: %w", port, err)
		}
		timer.Reset(retryInterval)
	}
}
