package stdio

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// FIFO is where a directory of NewFIFOs has the one of a descriptor.
func FIFO(dir string, fd int) string { return filepath.Join(dir, strconv.Itoa(fd)) }

// NewFIFOs makes FIFOs, in a directory that it makes too, for the descriptors that are wanted of a process which somebody
// else runs. Both ends of the outputs are held open here until CloseChild: then that somebody has opened his own, whose
// closing is seen. The input is opened from then on, when he has. terminal tells that he has a terminal behind them.
func NewFIFOs(dir string, wanted [3]bool, terminal bool) (_ *Ends, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("stdio: %w", err)
	}
	e := &Ends{ready: make(chan struct{}), terminal: terminal}
	close(e.ready)
	defer func() {
		if err != nil {
			e.Close()
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	for fd := range wanted {
		if !wanted[fd] {
			continue
		}
		path := FIFO(dir, fd)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			return nil, fmt.Errorf("stdio: %w", &os.PathError{Op: "mkfifo", Path: path, Err: err})
		}
		if fd == Stdin {
			e.fifo = &fifoInput{path: path, ready: make(chan struct{})}
			continue
		}
		// Open for both there is no waiting for the other end.
		if e.theirs[fd], err = os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
			return nil, fmt.Errorf("stdio: %w", err)
		}
		if e.ours[fd], err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return nil, fmt.Errorf("stdio: %w", err)
		}
		if raw, err := e.ours[fd].SyscallConn(); err == nil {
			// A FIFO that stays small is only slower.
			_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, PipeSize) })
		}
	}
	return e, nil
}

// fifoInput is a FIFO that is opened for writing when its reader has opened it: what was written before would be lost with the
// last one who holds it, and he who reads may open it later than he says.
type fifoInput struct {
	path  string
	ready chan struct{}
	// The mutex of the ends guards these. ended: it is closed as soon as it is open.
	opening, opened, ended bool
	reader                 *os.File // of giveUp
}

// open begins to wait for the reader; the caller has the lock of the ends.
func (i *fifoInput) open(e *Ends) {
	if i.opening {
		return
	}
	i.opening = true
	go func() { // ends with the reader, or with giveUp
		defer close(i.ready)
		f, err := os.OpenFile(i.path, os.O_WRONLY, 0)
		e.mu.Lock()
		defer e.mu.Unlock()
		i.opened = true
		if i.reader != nil {
			i.reader.Close()
		}
		switch {
		case err != nil: // its directory was removed: nobody will read
		case e.closed || i.ended:
			f.Close()
		default:
			e.ours[Stdin] = f
		}
	}()
}

// giveUp lets nobody wait any more; the caller has the lock of the ends.
func (i *fifoInput) giveUp() {
	if !i.opening {
		i.opening = true
		close(i.ready)
		return
	}
	if i.opened {
		return
	}
	// A reader is what the writer waits for, or is about to.
	if f, err := os.OpenFile(i.path, os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
		i.reader = f
	}
}

// InputReady is closed when the input can be written to, or never will.
func (e *Ends) InputReady() <-chan struct{} {
	if e.fifo != nil {
		return e.fifo.ready
	}
	return e.ready
}
