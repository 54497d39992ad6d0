package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/filelock"
)

// locks keeps directories for one daemon. The kernel lets go of them however the daemon ends.
type locks []*filelock.Lock

// lockFile is what a locked directory has.
const lockFile = "lock"

// lockDirs makes the directories where they are missing and locks them, or says who has them.
func lockDirs(dirs ...string) (locks, error) {
	var l locks
	for _, dir := range dirs {
		lock, err := lockDir(dir)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l = append(l, lock)
	}
	return l, nil
}

func lockDir(dir string) (*filelock.Lock, error) {
	// Nobody but root has business there: images and disks keep the users and modes of what is in them.
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("daemon: directory %s: %w", dir, err)
	}
	lock, err := filelock.TakeOver(filepath.Join(dir, lockFile))
	if held := (*filelock.HeldError)(nil); errors.As(err, &held) {
		return nil, fmt.Errorf("daemon: %s is in use by another pistisd (pid %s); stop it, or give this one its own root and state: %w",
			dir, held.Owner, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	_ = lock.Sign() // for the sentence above alone: on a disk that is full a daemon starts as well
	return lock, nil
}

// Close lets go of the directories.
func (l locks) Close() error {
	var errs []error
	for _, lock := range l {
		errs = append(errs, lock.Close())
	}
	return errors.Join(errs...)
}
