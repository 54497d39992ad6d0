package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// locks keeps directories for one daemon. The kernel lets go of them however the daemon ends.
type locks []*os.File

// lockFile is what a locked directory has.
const lockFile = "lock"

// lockDirs makes the directories where they are missing and locks them, or says who has them.
func lockDirs(dirs ...string) (locks, error) {
	var l locks
	for _, dir := range dirs {
		file, err := lockDir(dir)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l = append(l, file)
	}
	return l, nil
}

func lockDir(dir string) (*os.File, error) {
	// Nobody but root has business there: images and disks keep the users and modes of what is in them.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("daemon: directory %s: %w", dir, err)
	}
	path := filepath.Join(dir, lockFile)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("daemon: lock: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner, _ := io.ReadAll(io.LimitReader(file, 32))
		_ = file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("daemon: %s is in use by another pistisd (pid %s); stop it, or give this one its own root and state: %w",
				dir, strings.TrimSpace(string(owner)), errdefs.ErrFailedPrecondition)
		}
		return nil, fmt.Errorf("daemon: lock %s: %w", path, err)
	}
	// The pid is for the sentence above alone; the lock is what counts.
	if err := file.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(file, "%d\n", os.Getpid())
	}
	return file, nil
}

// Close lets go of the directories.
func (l locks) Close() error {
	var errs []error
	for _, file := range l {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}
