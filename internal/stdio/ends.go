package stdio

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The descriptors of a process.
const (
	Stdin = iota
	Stdout
	Stderr
)

// PipeSize is what a process may write ahead, in bytes, and what it may have left in a pipe when it ends.
const PipeSize = 256 << 10

// Ends are the two sides of a process's stdio: pipes, or a terminal, whose master comes when the process is made. They own
// the descriptors.
type Ends struct {
	terminal bool
	ready    chan struct{}

	mu           sync.Mutex
	ours, theirs [3]*os.File
	// size is what the terminal gets when it comes.
	size   *unix.Winsize
	closed bool
	// fifo is where the input is opened when somebody else reads it; nil where that is no FIFO.
	fifo *fifoInput
}

// NewPipes makes pipes for the descriptors that are wanted; the process reads and writes /dev/null at the others.
func NewPipes(wanted [3]bool) (*Ends, error) {
	e := &Ends{ready: make(chan struct{})}
	close(e.ready)
	for fd := range wanted {
		if !wanted[fd] {
			continue
		}
		var err error
		if e.ours[fd], e.theirs[fd], err = pipe(fd == Stdin); err != nil {
			e.Close()
			return nil, err
		}
	}
	return e, nil
}

// NewTerminal returns the ends of a process with a terminal, which SetConsole brings.
func NewTerminal() *Ends { return &Ends{terminal: true, ready: make(chan struct{})} }

// pipe makes one pipe. Our end alone does not block: it is in the Go poller, and the flag of a shared end would be seen
// by the process.
func pipe(input bool) (ours, theirs *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("stdio pipe: %w", err)
	}
	if input {
		p[0], p[1] = p[1], p[0]
	}
	// A pipe that stays small is only slower.
	_, _ = unix.FcntlInt(uintptr(p[0]), unix.F_SETPIPE_SZ, PipeSize)
	if err := unix.SetNonblock(p[0], true); err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, nil, fmt.Errorf("stdio pipe: %w", err)
	}
	return os.NewFile(uintptr(p[0]), "stdio"), os.NewFile(uintptr(p[1]), "stdio of process"), nil
}

// Terminal tells whether the process has a terminal.
func (e *Ends) Terminal() bool { return e.terminal }

// Child returns the process's ends, nil where it gets /dev/null. They are closed by CloseChild.
func (e *Ends) Child() []*os.File {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.theirs[:])
}

// CloseChild closes the process's ends here, once the process has them: the end of output is seen only then.
func (e *Ends) CloseChild() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for fd, f := range e.theirs {
		if f != nil {
			f.Close()
			e.theirs[fd] = nil
		}
	}
	if e.fifo != nil && !e.closed {
		e.fifo.open(e)
	}
}

// SetConsole takes over the master of the terminal, which must not block.
func (e *Ends) SetConsole(master *os.File) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || !e.terminal || e.ours[Stdout] != nil {
		master.Close()
		return
	}
	e.ours = [3]*os.File{Stdin: master, Stdout: master}
	if e.size != nil {
		// A terminal that cannot be resized is one all the same.
		_ = e.setSize()
	}
	close(e.ready)
}

// Ready is closed when Ours has its answer: for pipes from the beginning, for a terminal when it has come or will not.
func (e *Ends) Ready() <-chan struct{} { return e.ready }

// Ours is our end of a descriptor: nil where there is none, or none any more.
func (e *Ends) Ours(fd int) *os.File {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.ours[fd]
}

// Resize sets the size of the terminal in characters, or the one that the terminal will have when it comes: clients tell
// their size at once and then only when it changes.
func (e *Ends) Resize(width, height uint16) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !e.terminal:
		return fmt.Errorf("resize: the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	case e.closed:
		return fmt.Errorf("resize: the terminal is not open: %w", errdefs.ErrFailedPrecondition)
	}
	e.size = &unix.Winsize{Row: height, Col: width}
	if e.ours[Stdout] == nil {
		return nil
	}
	return e.setSize()
}

// Size is what Resize was told last; zero before that.
func (e *Ends) Size() (width, height uint16) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.size == nil {
		return 0, 0
	}
	return e.size.Col, e.size.Row
}

// setSize applies the size; the caller holds the lock.
func (e *Ends) setSize() error {
	conn, err := e.ours[Stdout].SyscallConn()
	if err != nil {
		return err
	}
	var ioctl error
	err = conn.Control(func(fd uintptr) { ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, e.size) })
	return errors.Join(err, ioctl)
}

// CloseInput ends the process's input, unless that is a terminal. It is idempotent.
func (e *Ends) CloseInput() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.terminal {
		return
	}
	if e.fifo != nil {
		e.fifo.ended = true
	}
	if f := e.ours[Stdin]; f != nil {
		f.Close()
	}
}

// Close closes everything and ends reads and writes that wait. It is idempotent.
func (e *Ends) Close() {
	e.CloseChild()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.closed = true
	if e.fifo != nil {
		e.fifo.giveUp()
	}
	for _, f := range e.ours {
		if f != nil {
			f.Close() // a terminal twice, which does no harm
		}
	}
	select {
	case <-e.ready:
	default:
		close(e.ready)
	}
}
