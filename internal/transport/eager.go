package transport

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// eagerness is how long a reader waits for the next message in the kernel, before it leaves waiting to Go's poller.
const eagerness = 100 * time.Millisecond

// Eagerness is how many readers may wait in the kernel at a time. Each keeps one of GOMAXPROCS, which must be more.
type Eagerness struct {
	free     atomic.Int32
	patience time.Duration
}

// NewEagerness is for up to most readers.
func NewEagerness(most int) *Eagerness {
	e := &Eagerness{patience: eagerness}
	e.free.Store(int32(most))
	return e
}

func (e *Eagerness) take() bool {
	if e.free.Add(-1) >= 0 {
		return true
	}
	e.free.Add(1)
	return false
}

func (e *Eagerness) giveBack() { e.free.Add(1) }

// Eager reads and writes a descriptor on which one message follows the other. As long as messages come its reader waits in the
// kernel itself, by a system call that the runtime is not told of: it does not look for other work in the meantime. Through Go's
// poller each message would wake a thread that asks which descriptor it is, another one that watches over the first, and both would
// ask for more before they sleep again, which is most of a small message's time where changing from one thread to another is slow.
// A reader for whom nothing comes has no thread. What waits so is interrupted by the runtime's signals and can be stopped then, so that
// garbage collection does not wait for it.
//
// One at a time may read, and one write.
type Eager struct {
	fd, wake  int
	eagerness *Eagerness

	mu     sync.Mutex
	users  int // Close is one of them until it is called
	closed bool
	parked [2]*os.File // what a reader and a writer wait for in Go's poller
}

// Adopt takes over a descriptor that can be polled and does not block.
func (e *Eagerness) Adopt(fd int) (*Eager, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &Eager{fd: fd, wake: wake, eagerness: e, users: 1}, nil
}

// Conn is another descriptor of a connection's, which its caller closes. It is nil for a connection that has none.
func (e *Eagerness) Conn(conn any) (*Eager, error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil, nil
	}
	copied, err := Duplicate(c)
	if err != nil {
		return nil, err
	}
	adopted, err := e.Adopt(copied)
	if err != nil {
		unix.Close(copied)
	}
	return adopted, err
}

// Duplicate is another descriptor for what a connection or a file has, which its owner may close at any time.
func Duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var failed error
	if err := raw.Control(func(of uintptr) { fd, failed = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return -1, err
	}
	return fd, os.NewSyscallError("fcntl", failed)
}

// Read waits for bytes. The error is a number of the kernel's, io.EOF, or os.ErrClosed after Close.
func (e *Eager) Read(b []byte) (int, error) {
	return e.read(b, func() error { return e.await(unix.POLLIN) })
}

// ReadWithin is Read that waits for so long at most. The error is os.ErrDeadlineExceeded then.
func (e *Eager) ReadWithin(b []byte, patience time.Duration) (int, error) {
	return e.read(b, func() error { return e.awaitWithin(patience) })
}

func (e *Eager) read(b []byte, await func() error) (int, error) {
	if err := e.use(); err != nil {
		return 0, err
	}
	defer e.release()
	for {
		if err := await(); err != nil {
			return 0, err
		}
		n, err := rawIO(unix.SYS_READ, e.fd, b)
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
		m, err := rawIO(unix.SYS_WRITE, e.fd, b[n:])
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

// await returns when the descriptor may be ready, or have an error, which the next call then tells.
func (e *Eager) await(event int16) error {
	if e.eagerness.take() {
		ready, err := e.poll(event, e.eagerness.patience)
		e.eagerness.giveBack()
		if ready || err != nil {
			return err
		}
	}
	return e.park(event)
}

// awaitWithin waits for bytes for a time so short that Go's poller would be no help.
func (e *Eager) awaitWithin(patience time.Duration) error {
	wait := e.pollTold
	if e.eagerness.take() {
		defer e.eagerness.giveBack()
		wait = e.poll
	}
	ready, err := wait(unix.POLLIN, patience)
	if !ready && err == nil {
		err = os.ErrDeadlineExceeded
	}
	return err
}

func (e *Eager) events(event int16) [2]unix.PollFd {
	return [2]unix.PollFd{{Fd: int32(e.fd), Events: event}, {Fd: int32(e.wake), Events: unix.POLLIN}}
}

// pollTold is poll for who may not keep one of GOMAXPROCS: the runtime is told.
func (e *Eager) pollTold(event int16, limit time.Duration) (ready bool, err error) {
	fds, patience := e.events(event), unix.NsecToTimespec(int64(limit))
	for {
		n, err := unix.Ppoll(fds[:], &patience, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return false, os.NewSyscallError("ppoll", err)
		case fds[1].Revents != 0:
			return false, os.ErrClosed
		default:
			return n > 0, nil
		}
	}
}

// poll waits in the kernel. Its caller has taken from eagerness.
func (e *Eager) poll(event int16, limit time.Duration) (ready bool, err error) {
	fds := e.events(event)
	patience := unix.NsecToTimespec(int64(limit)) // Linux leaves there what is left of it
	for {
		n, errno := rawPoll(&fds, &patience)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return false, os.NewSyscallError("ppoll", errno)
		case fds[1].Revents != 0:
			return false, os.ErrClosed
		default:
			return n > 0, nil
		}
	}
}

// rawPoll is a function of its own, since to call one is where the runtime can stop a goroutine whose signal it sees here, in the
// loop of who calls it: inlined, garbage collection would wait until nothing is waited for any more.
//
//go:noinline
func rawPoll(fds *[2]unix.PollFd, patience *unix.Timespec) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(fds)), uintptr(len(fds)), uintptr(unsafe.Pointer(patience)), 0, 0, 0)
	return int(n), errno
}

// park waits in Go's poller, through a descriptor that is there for it alone: what the poller knows wakes it.
func (e *Eager) park(event int16) error {
	side := 0
	if event == unix.POLLOUT {
		side = 1
	}
	fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return e.waitWithThread(event)
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
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.parked[side] = nil
	}()
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	wait := raw.Read
	if side == 1 {
		wait = raw.Write
	}
	err = wait(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: event}}
		n, err := unix.Ppoll(fds, &unix.Timespec{}, nil)
		return err != nil && err != unix.EINTR || n > 0
	})
	if err != nil { // Close, or an error of the descriptor's, which are seen there at once; or the poller can take no more
		return e.waitWithThread(event)
	}
	return nil
}

// waitWithThread is for a process that has all descriptors open that it may: it ends no connection by that. It may return early.
func (e *Eager) waitWithThread(event int16) error {
	_, err := e.pollTold(event, time.Minute)
	return err
}

// rawIO reads or writes what does not block.
func rawIO(call uintptr, fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
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
