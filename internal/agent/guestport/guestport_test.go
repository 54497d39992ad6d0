package guestport

import (
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// scarce is a listener of a guest whose containers hold all files for a while.
type scarce struct {
	net.Listener
	failures int
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.failures--; l.failures >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.ENFILE)}
	}
	return nil, net.ErrClosed
}

func TestAcceptOutlivesScarcity(t *testing.T) {
	l := &scarce{failures: 1}
	if _, err := (hostOnly{l}).Accept(); !errors.Is(err, net.ErrClosed) || l.failures >= 0 {
		t.Errorf("accept: %v with %d failures to come", err, l.failures)
	}
}
