package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxOptions is what mount(2) takes, in bytes.
const maxOptions = 4095

// settings of every overlay. Layers are a stranger's: notes in them that lead elsewhere are not followed. An index of
// hard links would tie the upper directory to these very layers.
const settings = "index=off,metacopy=off,redirect_dir=nofollow"

// stack is the opened layers of an image.
type stack struct {
	// layers has the uppermost first. Each comes once: what comes again below is hidden by itself, and the kernel refuses
	// to stack it.
	layers []*os.File
	bottom *os.File // the lowest one
	// uid and gid are who root is.
	uid, gid int
	mapped   string // where layers are mounted with mapped owners; empty: nowhere
}

// openStack opens layers, given lowest first, and adds empty ones at the bottom until there are least. dir is for
// what it needs; all of that goes with close, but the empty layers.
func openStack(dir string, lowers []string, least int, userns string) (_ *stack, err error) {
	s := &stack{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	parent := ""
	if userns != "" {
		if parent, err = s.mapOwners(dir, lowers, userns); err != nil {
			return nil, err
		}
	}
	opened := map[string]*os.File{}
	for i := len(lowers) - 1; i >= 0; i-- {
		if opened[lowers[i]] == nil {
			name := lowers[i]
			if s.mapped != "" {
				if filepath.Dir(name) != parent {
					return nil, fmt.Errorf("layers %s and %s are in different directories: %w", lowers[0], name, errdefs.ErrInvalidArgument)
				}
				name = filepath.Join(s.mapped, filepath.Base(name))
			}
			if opened[lowers[i]], err = s.open(name); err != nil {
				return nil, err
			}
		}
		s.bottom = opened[lowers[i]]
	}
	for len(s.layers) < least {
		if err := s.addEmpty(filepath.Join(dir, fmt.Sprint(empty, len(s.layers)))); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// open adds a directory at the bottom of the stack.
func (s *stack) open(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("layer: %w", &os.PathError{Op: "open", Path: name, Err: err})
	}
	f := os.NewFile(uintptr(fd), name)
	s.layers = append(s.layers, f)
	return f, nil
}

func (s *stack) addEmpty(name string) error {
	if err := os.Mkdir(name, 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(name, s.uid, s.gid), os.Chmod(name, 0o755)); err != nil {
		return err
	}
	f, err := s.open(name)
	if s.bottom == nil {
		s.bottom = f
	}
	return err
}

// mapOwners mounts the directory of the layers once more in dir, with its owners mapped into a user namespace, and
// returns that directory.
func (s *stack) mapOwners(dir string, lowers []string, userns string) (string, error) {
	ns, err := os.Open(userns)
	if err != nil {
		return "", fmt.Errorf("user namespace: %w", err)
	}
	defer ns.Close()
	parent := dir
	if len(lowers) > 0 {
		parent = filepath.Dir(lowers[0])
	}
	if s.uid, s.gid, err = ownerOf(unix.AT_FDCWD, parent); err != nil {
		return "", err
	} else if s.uid != 0 || s.gid != 0 {
		return "", fmt.Errorf("the directory of layers %s does not belong to root: %w", parent, errdefs.ErrFailedPrecondition)
	}
	tree, err := mappedClone(parent, ns)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	// It is root's, so its owner in the clone is who root is in the namespace.
	if s.uid, s.gid, err = ownerOf(int(tree.Fd()), ""); err != nil || len(lowers) == 0 {
		return "", err
	}
	at := filepath.Join(dir, mapped)
	if err := os.Mkdir(at, 0o700); err != nil {
		return "", err
	}
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return "", errors.Join(&os.PathError{Op: "attach mount to", Path: at, Err: err}, os.Remove(at))
	}
	s.mapped = at
	return parent, nil
}

func ownerOf(dir int, name string) (uid, gid int, err error) {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_EMPTY_PATH); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return int(st.Uid), int(st.Gid), nil
}

// mappedClone copies the mount at a path with its owners mapped. The copy is attached nowhere and ends with its file.
func mappedClone(path string, userns *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "clone mount of", Path: path, Err: err}
	}
	tree := os.NewFile(uintptr(fd), path)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd()), Propagation: unix.MS_PRIVATE,
	})
	if err != nil {
		err = fmt.Errorf("map the owners of %s into %s: %w: its file system or the kernel cannot: %w", path, userns.Name(), err, errdefs.ErrFailedPrecondition)
		return nil, errors.Join(err, tree.Close())
	}
	return tree, nil
}

// close lets go of the layers. An overlay of them has mounts of its own.
func (s *stack) close() error {
	var errs []error
	for _, f := range s.layers {
		errs = append(errs, f.Close())
	}
	if s.mapped != "" {
		if err := unix.Unmount(s.mapped, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
			errs = append(errs, &os.PathError{Op: "unmount", Path: s.mapped, Err: err})
		} else {
			errs = append(errs, os.Remove(s.mapped))
		}
	}
	return errors.Join(errs...)
}

// mountWritable mounts an overlay with a fresh directory for what is written.
func mountWritable(dir string, s *stack, opts Options) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(s.bottom.Fd()), &st); err != nil {
		return err
	}
	files := map[string]*os.File{}
	for _, name := range []string{upper, work} {
		path := filepath.Join(dir, data, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		files[name] = f
	}
	// The overlay shows the upper directory's.
	if err := unix.Fchown(int(files[upper].Fd()), int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(int(files[upper].Fd()), st.Mode&0o7777); err != nil {
		return err
	}
	return mountOverlay(filepath.Join(dir, mountPoint), 0, opts, s.layers,
		"upperdir="+fdPath(files[upper]), "workdir="+fdPath(files[work]))
}

// mountReadOnly mounts an overlay of layers alone. One layer is no exception: its whiteouts are to be hidden.
func mountReadOnly(dir string, s *stack, opts Options) error {
	return mountOverlay(filepath.Join(dir, mountPoint), unix.MS_RDONLY|unix.MS_NODEV, opts, s.layers)
}

func mountOverlay(at string, flags uintptr, opts Options, layers []*os.File, more ...string) error {
	options, err := overlayOptions(layers, opts.MountLabel, more...)
	if err != nil {
		return err
	}
	err = unix.Mount("overlay", at, "overlay", flags, options)
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("the kernel has no overlayfs: %w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("mount overlay: %w, the kernel's log says why: %w", err, errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("mount overlay: %w", err)
	}
	return nil
}

// overlayOptions names directories by descriptors: their paths may be too long for all to fit, or hold what has a
// meaning in options.
func overlayOptions(layers []*os.File, label string, more ...string) (string, error) {
	lower := make([]string, len(layers))
	for i, f := range layers {
		lower[i] = fdPath(f)
	}
	options := append([]string{settings, "lowerdir=" + strings.Join(lower, ":")}, more...)
	if label != "" {
		if strings.ContainsAny(label, "\"\\\x00") {
			return "", fmt.Errorf("SELinux label %q: it holds quotes: %w", label, errdefs.ErrInvalidArgument)
		}
		options = append(options, `context="`+label+`"`) // quoted, as its categories have commas between them
	}
	text := strings.Join(options, ",")
	if len(text) > maxOptions {
		return "", fmt.Errorf("%d layers are more than one mount can name: %w", len(layers), errdefs.ErrInvalidArgument)
	}
	return text, nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
