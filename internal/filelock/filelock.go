// Package filelock lets one process at a time have what a file stands for, as the directories of a daemon.
//
// A [Lock] belongs to who took it, until Close, and ends with its process, however that ends. The package imports
// nothing of ours.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// Handover is how long a lock may outlive the process that had it. The kernel lets go of it when the last copy of the
	// descriptor is closed: a process that was killed takes a moment to end, and a child that it had just forked has all of its
	// descriptors until the child becomes its program.
	Handover = 2 * time.Second
	// interval is how often a lock that is held is asked for again.
	interval = 20 * time.Millisecond
	// maxOwner bounds what is read of a process's number.
	maxOwner = 32
)

// Lock is a lock on a file.
type Lock struct{ file *os.File }

// HeldError says who has a lock. It is Unavailable.
type HeldError struct {
	Path  string
	Owner string // the process's number, when it signed
}

func (e *HeldError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("lock %s: another process has it", e.Path)
	}
	return fmt.Sprintf("lock %s: process %s has it", e.Path, e.Owner)
}

func (e *HeldError) Unwrap() error { return errdefs.ErrUnavailable }

// TakeOver is Take for who may have been started right after the end of the lock's last owner: what is held for longer
// than that takes, is held by somebody who lives.
func TakeOver(path string) (*Lock, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Handover)
	defer cancel()
	return Take(ctx, path)
}

// Take makes the file where it is missing and locks it, waiting until ctx ends when somebody else has it: that is a
// HeldError.
//
// It asks again and again, as the kernel has no event for this: flock waits, but Go's runtime takes no signal that would
// end it, and inotify tells that a file is closed before its lock goes.
func Take(ctx context.Context, path string) (*Lock, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := wait(ctx, file); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &Lock{file}, nil
}

// Sign writes into the file whose lock it is. That is for a HeldError alone, and takes a block of the disk.
func (l *Lock) Sign() error {
	if err := l.file.Truncate(0); err != nil {
		return fmt.Errorf("sign lock: %w", err)
	}
	if _, err := l.file.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return fmt.Errorf("sign lock: %w", err)
	}
	return nil
}

func wait(ctx context.Context, file *os.File) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			owner, _ := io.ReadAll(io.NewSectionReader(file, 0, maxOwner))
			return fmt.Errorf("%w: %w", &HeldError{Path: file.Name(), Owner: strings.TrimSpace(string(owner))}, context.Cause(ctx))
		}
	}
}

// Close lets go of the lock, also of the copies of it that children have at this moment.
func (l *Lock) Close() error {
	return errors.Join(unix.Flock(int(l.file.Fd()), unix.LOCK_UN), l.file.Close())
}
