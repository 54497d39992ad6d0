package stdio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The descriptors of a process.
const (
	Stdin = iota
	Stdout
	Stderr
)

const (
	// bufferSize is what one stream holds in memory.
	bufferSize = 64 << 10
	// pipeSize is what a process may write ahead, in bytes.
	pipeSize = 256 << 10
	// littleOutput is what is not worth a frame of its own while a process goes on writing, and gatherTime how long
	// what follows it is gathered. A frame costs the guest exits and interrupts; a process that writes line by
	// line would pay them for every line.
	littleOutput = bufferSize / 2
	gatherTime   = 5 * time.Millisecond
)

// Conn is a stream that can be closed for writing alone.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Set is the stdio of one process.
type Set struct {
	terminal bool
	// ends are the agent's ends of pipes. ready is closed when a terminal is there, closed when none will be.
	ready, closed chan struct{}

	mu       sync.Mutex
	ends     [3]*os.File
	child    [3]*os.File
	attached [3]bool
	has      [3]bool
	console  *os.File
	// size is what the terminal gets when it comes.
	size     *unix.Winsize
	isClosed bool
}

// NewPipes returns a set of pipes; without stdin the process reads /dev/null.
func NewPipes(stdin bool) (*Set, error) {
	s := &Set{ready: make(chan struct{}), closed: make(chan struct{}), has: [3]bool{stdin, true, true}}
	close(s.ready)
	for fd, has := range s.has {
		if !has {
			continue
		}
		if err := s.pipe(fd); err != nil {
			s.CloseChild()
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

// pipe makes the pipe of one descriptor. The agent's end alone does not block: it is in the Go poller, and the
// flag of a shared end would be seen by the process.
func (s *Set) pipe(fd int) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("stdio pipe: %w", err)
	}
	mine, theirs := p[0], p[1]
	if fd == Stdin {
		mine, theirs = p[1], p[0]
	}
	// A pipe that stays small is only slower.
	_, _ = unix.FcntlInt(uintptr(mine), unix.F_SETPIPE_SZ, pipeSize)
	if err := unix.SetNonblock(mine, true); err != nil {
		unix.Close(mine)
		unix.Close(theirs)
		return fmt.Errorf("stdio pipe: %w", err)
	}
	s.ends[fd] = os.NewFile(uintptr(mine), "stdio")
	s.child[fd] = os.NewFile(uintptr(theirs), "stdio of process")
	return nil
}

// NewTerminal returns a set whose terminal comes with SetConsole when the process is made.
func NewTerminal(stdin bool) *Set {
	return &Set{terminal: true, ready: make(chan struct{}), closed: make(chan struct{}), has: [3]bool{stdin, true, false}}
}

// Terminal tells whether the process has a terminal.
func (s *Set) Terminal() bool { return s.terminal }

// Child returns the process's ends, nil where it gets /dev/null. They stay the set's.
func (s *Set) Child() []*os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.child[:]
}

// CloseChild closes the process's ends here, once the process has them: the end of output is seen only then.
func (s *Set) CloseChild() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for fd, f := range s.child {
		if f != nil {
			f.Close()
			s.child[fd] = nil
		}
	}
}

// SetConsole hands over the terminal's master.
func (s *Set) SetConsole(master *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed || s.console != nil {
		master.Close()
		return
	}
	s.console = master
	if s.size != nil {
		// A terminal that cannot be resized is one all the same.
		_ = s.setSize()
	}
	close(s.ready)
}

// Resize sets the size of the terminal in characters, or the one that the terminal will have when it comes:
// clients tell their size at once and then only when it changes.
func (s *Set) Resize(width, height uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.terminal:
		return fmt.Errorf("resize: the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	case s.isClosed:
		return fmt.Errorf("resize: the terminal is not open: %w", errdefs.ErrFailedPrecondition)
	}
	s.size = &unix.Winsize{Row: height, Col: width}
	if s.console == nil {
		return nil
	}
	return s.setSize()
}

// setSize applies the size; the caller holds the lock.
func (s *Set) setSize() error {
	conn, err := s.console.SyscallConn()
	if err != nil {
		return err
	}
	var ioctl error
	err = conn.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, s.size)
	})
	return errors.Join(err, ioctl)
}

// Claim reserves a descriptor for one stream.
func (s *Set) Claim(fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case fd < Stdin || fd > Stderr:
		return fmt.Errorf("descriptor %d: there are 0, 1 and 2: %w", fd, errdefs.ErrInvalidArgument)
	case !s.has[fd]:
		return fmt.Errorf("descriptor %d: the process has none: %w", fd, errdefs.ErrFailedPrecondition)
	case s.isClosed:
		return fmt.Errorf("descriptor %d: the process was deleted: %w", fd, errdefs.ErrFailedPrecondition)
	case s.attached[fd]:
		return fmt.Errorf("descriptor %d: it has a stream already: %w", fd, errdefs.ErrAlreadyExists)
	}
	s.attached[fd] = true
	return nil
}

// Serve copies between a claimed descriptor and a stream until both have ended, and closes the stream.
func (s *Set) Serve(fd int, conn Conn) {
	defer conn.Close()
	select {
	case <-s.ready:
	case <-s.closed:
		_ = conn.CloseWrite()
		return
	}
	f := s.end(fd)
	if fd == Stdin {
		s.serveInput(f, conn)
	} else {
		serveOutput(f, conn)
	}
}

func (s *Set) end(fd int) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal {
		return s.console
	}
	return s.ends[fd]
}

// serveInput copies until the host half-closes, which ends the process's input unless that is a terminal, or
// the process reads no more: then the host learns it as a broken stream.
func (s *Set) serveInput(f *os.File, conn Conn) {
	_, _ = copyBytes(f, conn)
	if !s.terminal {
		f.Close()
	}
}

// serveOutput copies until all writers have closed the descriptor. When the host goes away first the rest is
// thrown away, so that the process is not blocked for ever.
func serveOutput(f *os.File, conn Conn) {
	if _, err := copyBytes(conn, &gatherer{from: f}); err != nil && !isEnd(err) {
		_, _ = copyBytes(io.Discard, f)
	}
	_ = conn.CloseWrite()
}

// gatherer reads output. The first that comes is read at once; after a little of it the next read waits a moment, in
// which the pipe gathers more. No event tells how full a pipe is.
type gatherer struct {
	from io.Reader
	wait bool
}

func (g *gatherer) Read(p []byte) (int, error) {
	if g.wait {
		time.Sleep(gatherTime)
	}
	n, err := g.from.Read(p)
	g.wait = n < littleOutput
	return n, err
}

// copyBytes hides what else the two can do: io.Copy would splice, or take a buffer of another size.
func copyBytes(w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, bufferSize))
}

// isEnd tells the end of a terminal (EIO) and of a set that was closed from a broken stream.
func isEnd(err error) bool {
	var pathError *os.PathError
	return errors.As(err, &pathError) && (errors.Is(err, unix.EIO) || errors.Is(err, os.ErrClosed))
}

// CloseStdin ends the input, as when the process has ended: a stream that still brings some is drained.
func (s *Set) CloseStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.ends[Stdin]; f != nil {
		f.Close()
	}
}

// Close gives up everything, also output that no stream has taken.
func (s *Set) Close() {
	s.CloseChild()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed {
		return
	}
	s.isClosed = true
	close(s.closed)
	for _, f := range s.ends {
		if f != nil {
			f.Close()
		}
	}
	if s.console != nil {
		s.console.Close()
	}
}
