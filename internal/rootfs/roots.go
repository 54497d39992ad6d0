package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/cleanup"
)

// Roots are the mounted root file systems and images below one directory.
type Roots struct{ dir string }

// Options of a mount.
type Options struct {
	// UserNS is the path of a user namespace, such as /proc/1/ns/user. What the layers hold as owned by 0 belongs to
	// whom the namespace maps 0 to, and so on. All layers must then be in one directory, which is root's. Empty: owners
	// stay as they are.
	UserNS string
	// MountLabel is the SELinux label of all files. Empty where SELinux is off.
	MountLabel string
}

// The parts of a root's directory.
const (
	mountPoint = "root"
	data       = "data" // for root alone: what is below it has no nosuid
	upper      = "upper"
	work       = "work"
	mapped     = "lower" // where layers are mounted with mapped owners, while the overlay is made
	empty      = "empty" // and a number: stands for a layer where there are too few
)

// Open opens the directory dir, which it owns, and makes it where it does not exist. dir must be on a file system that
// overlayfs can write to. For containers with user namespaces all directories above dir must be searchable by others.
func Open(dir string) (*Roots, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("root file systems: %w", classify(err))
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, fmt.Errorf("root file systems: %w", classify(err))
	}
	return &Roots{dir: dir}, nil
}

// Path is where a root or image is mounted.
func (r *Roots) Path(id string) string { return filepath.Join(r.dir, id, mountPoint) }

// Mount makes the root file system id from layers, the lowest first, and returns where it is mounted. On error nothing
// is left of it. The mode and owner of / are those of the lowest layer.
//
// Errors: AlreadyExists for an id that was not removed, InvalidArgument for more layers than one mount can have,
// FailedPrecondition where the kernel or the file system cannot do it, ResourceExhausted for a full disk.
func (r *Roots) Mount(ctx context.Context, id string, lowers []string, opts Options) (string, error) {
	return r.make(ctx, id, lowers, opts, kind{least: 1, mount: mountWritable})
}

// MountImage mounts layers, the lowest first, read-only, and returns where. Errors are those of Mount.
func (r *Roots) MountImage(ctx context.Context, id string, lowers []string, opts Options) (string, error) {
	return r.make(ctx, id, lowers, opts, kind{least: 2, mount: mountReadOnly})
}

// kind of a mount.
type kind struct {
	least int // layers that overlayfs needs
	mount func(dir string, s *stack, opts Options) error
}

func (r *Roots) make(ctx context.Context, id string, lowers []string, opts Options, k kind) (_ string, err error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	dir := filepath.Join(r.dir, id)
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		return "", fmt.Errorf("root of %s: it was not removed: %w: %w", id, err, errdefs.ErrAlreadyExists)
	} else if err != nil {
		return "", fmt.Errorf("root of %s: %w", id, classify(err))
	}
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	undo.Add("remove root", func(ctx context.Context) error { return r.Remove(ctx, id) })
	if err := prepare(dir, lowers, opts, k); err != nil {
		return "", fmt.Errorf("root of %s: %w", id, classify(err))
	}
	return r.Path(id), nil
}

// prepare makes what a mount needs, and mounts.
func prepare(dir string, lowers []string, opts Options, k kind) (err error) {
	for _, name := range []string{mountPoint, data} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return err
		}
	}
	s, err := openStack(filepath.Join(dir, data), lowers, k.least, opts.UserNS)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if opts.UserNS != "" {
		if err := admit(dir, s.gid); err != nil {
			return err
		}
	}
	return k.mount(dir, s, opts)
}

// admit lets the root user of a user namespace reach the mount point, and nobody else.
func admit(dir string, gid int) error {
	for above := filepath.Dir(dir); ; above = filepath.Dir(above) {
		info, err := os.Stat(above)
		if err != nil {
			return err
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("root in a user namespace has no way to %s: others may not search %s: chmod o+x, or another directory: %w", dir, above, errdefs.ErrFailedPrecondition)
		}
		if above == "/" || above == "." {
			break
		}
	}
	if err := os.Chown(dir, 0, gid); err != nil {
		return err
	}
	return os.Chmod(dir, 0o710)
}

// Remove unmounts a root or image and removes what was written to it. It is idempotent, and goes on where a call that
// failed has ended.
func (r *Roots) Remove(ctx context.Context, id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	dir := filepath.Join(r.dir, id)
	for _, at := range []string{filepath.Join(dir, mountPoint), filepath.Join(dir, data, mapped)} {
		// Detached: a process that hangs in the kernel must not keep the container from being removed.
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("root of %s: unmount: %w", id, classify(err))
		}
	}
	if err := removeAll(ctx, dir); err != nil {
		return fmt.Errorf("root of %s: remove what was written: %w", id, classify(err))
	}
	return nil
}

// Sweep removes all roots and images whose ids keep does not want.
func (r *Roots) Sweep(ctx context.Context, keep func(id string) bool) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("root file systems: %w", classify(err))
	}
	var errs []error
	for _, e := range entries {
		if !keep(e.Name()) {
			errs = append(errs, r.Remove(ctx, e.Name()))
		}
	}
	return errors.Join(errs...)
}

// SubPath finds a directory of a mounted image; links are resolved as if the image were /. The result is a path of the
// host without links. NotFound where there is none, InvalidArgument for what is no directory.
func SubPath(root, sub string) (string, error) {
	dir, err := os.Open(root)
	if err != nil {
		return "", fmt.Errorf("image %s: %w", root, classify(err))
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), sub, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", fmt.Errorf("sub path %q: the image does not hold it: %w: %w", sub, err, errdefs.ErrNotFound)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EINVAL):
		return "", fmt.Errorf("sub path %q: it is no directory of the image: %w: %w", sub, err, errdefs.ErrInvalidArgument)
	case err != nil:
		return "", fmt.Errorf("sub path %q: %w", sub, classify(err))
	}
	found := os.NewFile(uintptr(fd), sub)
	defer found.Close()
	path, err := os.Readlink(fdPath(found))
	if err != nil {
		return "", fmt.Errorf("sub path %q: %w", sub, classify(err))
	}
	return path, nil
}

// checkID accepts the name of one directory.
func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 255 || strings.ContainsAny(id, "/\x00") {
		return fmt.Errorf("root of %q: this is no id: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// classify gives err the class of its cause.
func classify(err error) error {
	switch {
	case err == nil, !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("the file system of the containers is full, remove some or enlarge it: %w: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	default:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
}
