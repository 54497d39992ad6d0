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
// else runs. Until CloseChild both ends are held open here: then that somebody has opened his own, whose closing is seen.
// terminal tells that he has a terminal behind them.
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
		if e.ours[fd], e.theirs[fd], err = openFIFO(FIFO(dir, fd), fd == Stdin); err != nil {
			return nil, fmt.Errorf("stdio: %w", err)
		}
	}
	return e, nil
}

func openFIFO(path string, input bool) (ours, theirs *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	// Open for both there is no waiting for the other end, whichever that is.
	if theirs, err = os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, err
	}
	way := os.O_RDONLY
	if input {
		way = os.O_WRONLY
	}
	if ours, err = os.OpenFile(path, way|unix.O_NONBLOCK, 0); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	if raw, err := ours.SyscallConn(); err == nil {
		// A FIFO that stays small is only slower.
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, PipeSize) })
	}
	return ours, theirs, nil
}
