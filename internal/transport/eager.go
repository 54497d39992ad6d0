package transport

import (
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// eagerness is how long a reader waits for the next message in the kernel, before it leaves waiting to Go's poller.
const eagerness = 10 * time.Millisecond

// Eager reads and writes a descriptor on which one message follows the other. Its reader waits in the kernel itself as long as
// messages come: through Go's poller each of them would wake a thread that looks which descriptor it is, one that watches the
// others, and both again when there is nothing more, which is most of a small message's time where changing from one thread to
// another is slow. A reader for whom nothing comes has no thread.
//
// A reader that waits so keeps one of GOMAXPROCS, and it takes one more for it to be left alone by the runtime.
//
// One at a time may read, and one write.
type Eager struct {
	fd, wake int

	mu     sync.Mutex
	users  int // Close is one of them until it is called
	closed bool
	parked [2]*os.File // what a reader and a writer wait for in Go's poller
}

// NewEager takes over a descriptor that can be polled and does not block.
func NewEager(fd int) (*Eager, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &Eager{fd: fd, wake: wake, users: 1}, nil
}

// EagerConn is another descriptor of a connection's, which its caller closes. It is nil for a connection that has none.
func EagerConn(conn any) (*Eager, error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil, nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	copied := -1
	var failed error
	err = raw.Control(func(fd uintptr) { copied, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err == nil {
		err = failed
	}
	if err != nil {
		return nil, err
	}
	e, err := NewEager(copied)
	if err != nil {
		unix.Close(copied)
	}
	return e, err
}

// Read waits for bytes. The error is a number of the kernel's, io.EOF, or os.ErrClosed after Close.
func (e *Eager) Read(b []byte) (int, error) {
	if err := e.use(); err != nil {
		return 0, err
	}
	defer e.release()
	for {
		if err := e.await(unix.POLLIN); err != nil {
			return 0, err
		}
		n, err := unix.Read(e.fd, b)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
		case err != nil:
			return 0, err
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write writes all of b, in one piece where the other side takes that.
func (e *Eager) Write(b []byte) (n int, err error) {
	if err := e.use(); err != nil {
		return 0, err
	}
	defer e.release()
	for {
		m, err := unix.Write(e.fd, b[n:])
		if n += max(m, 0); err == nil && n == len(b) {
			return n, nil
		}
		if err != nil && err != unix.EAGAIN && err != unix.EINTR {
			return n, err
		}
		if err == unix.EAGAIN {
			if err := e.await(unix.POLLOUT); err != nil {
				return n, err
			}
		}
	}
}

// await returns when the descriptor is ready, or has an error, which the next call then tells.
func (e *Eager) await(event int16) error {
	for {
		fds := []unix.PollFd{{Fd: int32(e.fd), Events: event}, {Fd: int32(e.wake), Events: unix.POLLIN}}
		patience := unix.NsecToTimespec(int64(eagerness))
		n, err := unix.Ppoll(fds, &patience, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("ppoll", err)
		case fds[1].Revents != 0:
			return os.ErrClosed
		case n > 0:
			return nil
		default:
			if err := e.park(event); err != nil {
				return err
			}
		}
	}
}

// park waits in Go's poller, through a descriptor that is there for it alone: what the poller knows wakes it.
func (e *Eager) park(event int16) error {
	side := 0
	if event == unix.POLLOUT {
		side = 1
	}
	fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), "parked")
	defer f.Close()
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return os.ErrClosed
	}
	e.parked[side] = f
	e.mu.Unlock()
	raw, err := f.SyscallConn()
	if err == nil {
		wait := raw.Read
		if side == 1 {
			wait = raw.Write
		}
		_ = wait(func(fd uintptr) bool { // an error of the poller's is one of the descriptor's, or Close
			fds := []unix.PollFd{{Fd: int32(fd), Events: event}}
			n, err := unix.Ppoll(fds, &unix.Timespec{}, nil)
			return err != nil && err != unix.EINTR || n > 0
		})
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parked[side] = nil
	return err
}

func (e *Eager) use() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return os.ErrClosed
	}
	e.users++
	return nil
}

func (e *Eager) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.users--; e.users == 0 {
		unix.Close(e.fd)
		unix.Close(e.wake)
	}
}

// Close wakes whoever reads or writes; the descriptor is closed when they have returned. It is idempotent.
func (e *Eager) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	_, _ = unix.Write(e.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // it has room for that
	for _, f := range e.parked {
		if f != nil {
			_ = f.SetDeadline(time.Unix(1, 0))
		}
	}
	e.mu.Unlock()
	e.release()
	return nil
}
