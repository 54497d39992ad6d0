package rootfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

const (
	// maxDepth bounds the descriptors that a look through a tree holds.
	maxDepth = 1000
	// batch is how many names of a directory are read at a time.
	batch = 1024
)

// beneath opens a directory of another one: no link is followed, and no mount is entered.
func beneath(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Usage is what a container has written to its root: bytes that are allocated, and inodes, each counted once. It may be
// called while the container runs. NotFound for an unknown id, ResourceExhausted for directories that are nested too deep.
func (r *Roots) Usage(ctx context.Context, id string) (bytes, inodes uint64, err error) {
	if err := checkID(id); err != nil {
		return 0, 0, err
	}
	dir, err := os.Open(filepath.Join(r.dir, id, data, upper))
	if err != nil {
		return 0, 0, fmt.Errorf("usage of the root of %s: %w", id, classify(err))
	}
	m := meter{ctx: ctx, linked: map[uint64]struct{}{}}
	var st unix.Stat_t
	if err = unix.Fstat(int(dir.Fd()), &st); err == nil {
		m.add(&st)
		err = m.walk(dir, 0)
	}
	if err = errors.Join(err, dir.Close()); err != nil {
		return 0, 0, fmt.Errorf("usage of the root of %s: %w", id, classify(err))
	}
	return m.bytes, m.inodes, nil
}

// FileSystem is the one that the writable layers are on.
func (r *Roots) FileSystem() (task.FileSystem, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(r.dir, &st); err != nil {
		return task.FileSystem{}, fmt.Errorf("file system of the roots: %w", classify(err))
	}
	return task.FileSystem{Bytes: st.Blocks * uint64(st.Bsize), Inodes: st.Files, FreeInodes: st.Ffree}, nil
}

// meter adds up files.
type meter struct {
	ctx           context.Context
	bytes, inodes uint64
	linked        map[uint64]struct{} // inodes with several names
}

func (m *meter) add(st *unix.Stat_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, again := m.linked[st.Ino]; again {
			return
		}
		m.linked[st.Ino] = struct{}{}
	}
	m.bytes += uint64(st.Blocks) * 512
	m.inodes++
}

// walk adds up what is below a directory. Files may come and go.
func (m *meter) walk(dir *os.File, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories are nested deeper than %d: %w", maxDepth, errdefs.ErrResourceExhausted)
	}
	for {
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := m.ctx.Err(); err != nil {
			return err
		}
		for _, name := range names {
			var st unix.Stat_t
			err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
			if errors.Is(err, unix.ENOENT) {
				continue
			} else if err != nil {
				return err
			}
			m.add(&st)
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			if err := m.descend(dir, name, depth); err != nil {
				return err
			}
		}
	}
}

func (m *meter) descend(dir *os.File, name string, depth int) error {
	sub, err := beneath(dir, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // it was replaced in the meantime
	} else if err != nil {
		return err
	}
	return errors.Join(m.walk(sub, depth+1), sub.Close())
}

// removeAll removes a directory with all below it. What is there may be nested deeper than descriptors reach.
func removeAll(ctx context.Context, path string) error {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	r := remover{ctx: ctx, top: dir}
	if err := errors.Join(r.clear(dir, 0), dir.Close()); err != nil {
		return err
	}
	return os.Remove(path)
}

// remover empties the directory top. What is too deep in it is moved up to it.
type remover struct {
	ctx context.Context
	top *os.File
}

func (r *remover) clear(dir *os.File, depth int) error {
	for {
		// From the start each time: the position means little once names have gone.
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := r.ctx.Err(); err != nil {
			return err
		}
		for _, name := range names {
			if err := r.remove(dir, name, depth); err != nil {
				return err
			}
		}
	}
}

func (r *remover) remove(dir *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	} else if !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove %q: %w", name, err)
	}
	if depth == maxDepth {
		if err := unix.Renameat(int(dir.Fd()), name, int(r.top.Fd()), "deep-"+rand.Text()); err != nil {
			return fmt.Errorf("move %q: %w", name, err)
		}
		return nil
	}
	sub, err := beneath(dir, name)
	if err != nil {
		return err
	}
	if err := errors.Join(r.clear(sub, depth+1), sub.Close()); err != nil {
		return err
	}
	if err := unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove %q: %w", name, err)
	}
	return nil
}
