package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Process names a process for good: a pid may be used again, together with its start time it is not.
type Process struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/<pid>/stat, in clock ticks after boot.
	StartTime uint64 `json:"start_time"`
}

// Identify reads the start time of a process that runs. NotFound when there is none, or only its zombie.
func Identify(pid int) (Process, error) {
	data, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	state, start, err := parseStat(data)
	if err != nil {
		return Process{}, fmt.Errorf("read stat of process %d: %w", pid, err)
	}
	if state == 'Z' || state == 'X' {
		return Process{}, fmt.Errorf("process %d has ended: %w", pid, errdefs.ErrNotFound)
	}
	return Process{PID: pid, StartTime: start}, nil
}

func readStat(pid int) ([]byte, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/stat")
	if err == nil {
		defer f.Close()
		var data []byte
		if data, err = io.ReadAll(io.LimitReader(f, 4096)); err == nil {
			return data, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	return nil, err
}

// parseStat finds state (field 3) and start time (field 22). The name in field 2 may hold anything, so that the
// fields are counted from its last parenthesis.
func parseStat(data []byte) (state byte, start uint64, err error) {
	_, rest, ok := cutLast(data, ')')
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, fmt.Errorf("unexpected content: %w", errdefs.ErrDataLoss)
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return fields[0][0], start, err
}

func cutLast(data []byte, sep byte) (before, after []byte, ok bool) {
	i := bytes.LastIndexByte(data, sep)
	if i < 0 {
		return data, nil, false
	}
	return data[:i], data[i+1:], true
}

// Handle is a pidfd.
type Handle struct{ f *os.File }

// Open opens the process. NotFound when it has ended. The caller closes the handle.
func (p Process) Open() (*Handle, error) {
	if p.PID <= 0 {
		return nil, fmt.Errorf("process %d: %w", p.PID, errdefs.ErrNotFound)
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("process %d: %w", p.PID, errdefs.ErrNotFound)
	} else if err != nil {
		return nil, fmt.Errorf("open process %d: %w", p.PID, err)
	}
	h := &Handle{f: os.NewFile(uintptr(fd), "pidfd")}
	// Only now that the pid cannot be given away: is it the process that was meant?
	now, err := Identify(p.PID)
	if err == nil && now != p {
		err = fmt.Errorf("process %d has ended and its pid is used again: %w", p.PID, errdefs.ErrNotFound)
	}
	if err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Wait blocks until the process has ended or ctx ends; then the handle is closed.
func (h *Handle) Wait(ctx context.Context) error {
	raw, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { h.f.Close() })
	defer stop()
	err = raw.Read(func(fd uintptr) bool { return readable(int(fd)) })
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func readable(fd int) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return n > 0
		}
	}
}

// Signal sends a signal; nil when the process has ended.
func (h *Handle) Signal(sig unix.Signal) error {
	raw, err := h.f.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// Close closes the handle.
func (h *Handle) Close() error { return h.f.Close() }

// Kill ends the process and waits until it has gone. It is nil for one that had ended before.
func (p Process) Kill(ctx context.Context) error {
	h, err := p.Open()
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer h.Close()
	if err := h.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	if err := h.Wait(ctx); err != nil {
		return fmt.Errorf("kill process %d: it does not end: %w", p.PID, err)
	}
	return nil
}
