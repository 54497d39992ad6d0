package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// self names the network namespace of the calling thread, which /proc/self (the main thread) does not.
const self = "/proc/thread-self/ns/net"

// OpenDir makes a directory for pins, and a mount of its own that is shared with its copies, as that of iproute2: a
// bind mount of / or /run somewhere else copies the pins with it, and their removal must reach those copies, or the
// pins cannot be deleted. It is idempotent; its end is [RemoveDir].
func OpenDir(dir string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("directory of namespaces: %w", err)
	}
	err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // it is no mount yet
		if err = unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("directory of namespaces: shared mount at %s: %w", dir, err)
	}
	return nil
}

// RemoveDir removes the directory with its mount, and empty directories in it. There must be no pins in it. What is gone
// already is no error.
func RemoveDir(dir string) error {
	if err := unmountAll(dir); err != nil {
		return fmt.Errorf("directory of namespaces: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("directory of namespaces: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue // a pin, which keeps the directory
		}
		if err := remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("directory of namespaces: %w", err)
		}
	}
	if err := remove(dir); err != nil {
		return fmt.Errorf("directory of namespaces: %w", err)
	}
	return nil
}

// unmountAll removes all mounts that lie on path, on top of each other.
func unmountAll(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Create makes a network namespace with its loopback interface up and pins it at dir/id. It fails with
// ErrAlreadyExists when the pin is there; on any error nothing is left. The caller owns the pin: see Remove.
func Create(dir, id string) (string, error) {
	path, err := makePin(dir, id)
	if err != nil {
		return "", err
	}
	err = onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin at %s: %w", path, err)
		}
		return loopbackUp()
	})
	if err != nil {
		return "", errors.Join(fmt.Errorf("create network namespace: %s: %w", id, err), Remove(path))
	}
	return path, nil
}

// makePin makes the file that a namespace is mounted on.
func makePin(dir, id string) (string, error) {
	if id == "" || id == "." || id == ".." || strings.ContainsRune(id, '/') {
		return "", fmt.Errorf("create network namespace: %q cannot be a file name: %w", id, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", fmt.Errorf("create network namespace: %w", err)
	}
	path := filepath.Join(dir, id)
	pin, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("create network namespace: %s: %w", path, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return "", fmt.Errorf("create network namespace: %w", err)
	}
	pin.Close()
	return path, nil
}

// loopbackUp acts on the namespace of the calling thread.
func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set the loopback interface up: %w", err)
	}
	return nil
}

// Remove unmounts the pin and deletes it, and those that CreateOwned made beside it; what is gone already is no error. A
// namespace itself ends with the last process and descriptor in it.
func Remove(path string) error {
	for _, suffix := range []string{UserSuffix, IPCSuffix, UTSSuffix, ""} {
		if err := removePin(path + suffix); err != nil {
			return err
		}
	}
	return nil
}

func removePin(path string) error {
	if err := unmountAll(path); err != nil {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	if err := remove(path); err != nil {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// remove deletes a file or an empty directory on which nothing is mounted any more.
func remove(path string) error {
	err := os.Remove(path)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s is mounted a second time, in a recursive bind mount of a directory above it; "+
			"unmount it there (/proc/self/mountinfo has the place) and try again: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// List returns the IDs of the pins in dir, whether or not a namespace is still mounted there.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var ids []string
	for _, e := range entries {
		// A pin beside one that is gone is found by its id all the same.
		id := e.Name()
		for _, suffix := range []string{UserSuffix, IPCSuffix, UTSSuffix} {
			id = strings.TrimSuffix(id, suffix)
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Open opens a pinned namespace. ErrNotFound says that the path or the namespace behind it is gone.
func Open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open network namespace: %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		f.Close()
		return nil, fmt.Errorf("open network namespace: %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		f.Close()
		return nil, fmt.Errorf("open network namespace: %s: no namespace is mounted there: %w", path, errdefs.ErrNotFound)
	}
	return f, nil
}

// Do runs fn on a thread that is in the namespace at path. Goroutines that fn starts are not in it.
func Do(path string, fn func() error) error {
	f, err := Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return DoFile(f, fn)
}

// DoFile is Do for a namespace that is open.
func DoFile(f *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %s: %w", f.Name(), err)
		}
		return nil
	}, fn)
}

// DoNew runs fn on a thread in a fresh namespace that ends with fn, unless fn lets something hold it.
func DoNew(fn func() error) error {
	return onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, fn)
}

// onThread runs move and then fn on a thread of their own and brings the thread back afterwards. Where that fails the
// goroutine ends with the thread locked, so that the Go runtime discards the thread.
func onThread(move, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err, home := moved(move, fn)
		if home {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func moved(move, fn func() error) (err error, home bool) {
	own, err := os.Open(self)
	if err != nil {
		return fmt.Errorf("open the thread's network namespace: %w", err), true
	}
	defer own.Close()
	if err := move(); err != nil {
		return err, true
	}
	defer func() { home = unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil }()
	return fn(), false
}
