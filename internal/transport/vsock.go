package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// VSOCK dials the ports of the guest with this context id.
type VSOCK struct{ CID uint32 }

// connectTimeout bounds one attempt: a guest whose vsock driver is not loaded yet does not answer at all.
const connectTimeout = 250 * time.Millisecond

// Dial connects to a port of the guest and retries while the guest is booting, until ctx ends.
func (v VSOCK) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return retry(ctx, port, func(ctx context.Context) (net.Conn, error) {
		attempt, cancel := context.WithTimeout(ctx, connectTimeout)
		defer cancel()
		conn, err := vsock.DialContext(attempt, v.CID, port, nil)
		if err == nil {
			return conn, nil
		}
		if mayListenLater(err) {
			return nil, fmt.Errorf("%w: %w", errRefused, err)
		}
		return nil, err
	})
}

// mayListenLater reports whether a connect failed because the guest or its listener is not there yet.
func mayListenLater(err error) bool {
	var timeout interface{ Timeout() bool }
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return true
	}
	for _, errno := range []syscall.Errno{syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.ENODEV, syscall.EHOSTUNREACH, syscall.EINTR, syscall.EPIPE} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// ListenVSOCK listens in the guest on a port of every context id that the guest has.
func ListenVSOCK(port uint32) (net.Listener, error) {
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, err)
	}
	return l, nil
}

// AcceptPipe waits in the guest until the host opens the pipe.
func AcceptPipe(ctx context.Context) (net.Conn, error) {
	l, err := ListenVSOCK(PipePort)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			return nil, fmt.Errorf("wait for the host's pipe: %w", errors.Join(context.Cause(ctx), err))
		}
		if addr, ok := conn.RemoteAddr().(*vsock.Addr); ok && addr.ContextID == vsock.Host {
			return conn, nil
		}
		conn.Close() // processes of the guest can dial as well
	}
}

// Widen lets a stream over vsock hold that many bytes which its reader has not taken yet, so that whoever sends large messages
// need not wait for it within one. Other carriers have room of their own.
func Widen(conn net.Conn, bytes uint64) error {
	c, ok := conn.(*vsock.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		for _, option := range []int{unix.SO_VM_SOCKETS_BUFFER_MAX_SIZE, unix.SO_VM_SOCKETS_BUFFER_SIZE} {
			if failed == nil {
				failed = unix.SetsockoptUint64(int(fd), unix.AF_VSOCK, option, bytes)
			}
		}
	})
	return errors.Join(err, failed)
}
