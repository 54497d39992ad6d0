package rootfs

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/task"
)

const (
	// maxDepth bounds the descriptors that a look through a tree holds.
	maxDepth = 1000
	// maxLevels bounds how deep below that a tree is measured, and maxLinked how many files with several names are told from
	// each other: what a container makes must not fill the daemon's memory. Each takes 16 MiB at most.
	maxLevels = 1 << 20
	maxLinked = 1 << 19
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
// called while the container runs. NotFound for an unknown id.
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
		if len(m.linked) < maxLinked {
			m.linked[st.Ino] = struct{}{}
		}
	}
	m.bytes += uint64(st.Blocks) * 512
	m.inodes++
}

// walk adds up what is below a directory. Files may come and go.
func (m *meter) walk(dir *os.File, depth int) error {
	if depth > maxDepth {
		return m.deep(dir)
	}
	for {
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) {
			return nil // to its end, or it was removed in the meantime
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
	if replaced(err) {
		return nil
	} else if err != nil {
		return err
	}
	err = m.walk(sub, depth+1)
	if errors.Is(err, errMoved) {
		err = nil // as if it had been moved before
	}
	return errors.Join(err, sub.Close())
}

// level is a directory above the one that is looked at: which it is, and where in it to go on.
type level struct {
	ino  uint64
	next int64
}

// deep is walk with one descriptor and few bytes for each level. It comes back to a directory by "..", if that leads to it
// still: what is below one that is moved meanwhile is not counted to its end.
func (m *meter) deep(top *os.File) error {
	fd, err := unix.Dup(int(top.Fd()))
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), top.Name())
	defer func() { dir.Close() }()
	var above []level
	buffer := make([]byte, 8<<10)
	for {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.ReadDirent(int(dir.Fd()), buffer)
		if errors.Is(err, unix.ENOENT) {
			n = 0 // it was removed in the meantime
		} else if err != nil {
			return err
		}
		if n == 0 && len(above) == 0 {
			return nil
		}
		var next *os.File
		if n == 0 {
			if next, err = back(dir, above[len(above)-1]); err != nil {
				return err
			}
			above = above[:len(above)-1]
		} else if next, err = m.entries(dir, buffer[:n], &above); err != nil {
			return err
		}
		if next != nil {
			dir.Close()
			dir = next
		}
	}
}

// entries adds up files of a directory until one of them is a directory, which it returns; nil where there is none.
func (m *meter) entries(dir *os.File, entries []byte, above *[]level) (*os.File, error) {
	for e := range dirents(entries) {
		var st unix.Stat_t
		err := unix.Fstatat(int(dir.Fd()), e.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, err
		}
		m.add(&st)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || len(*above) == maxLevels {
			continue
		}
		sub, err := beneath(dir, e.name)
		if replaced(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
			return nil, errors.Join(err, sub.Close())
		}
		*above = append(*above, level{ino: st.Ino, next: e.next})
		return sub, nil
	}
	return nil, nil
}

// back opens the directory above one.
func back(dir *os.File, to level) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	up := os.NewFile(uintptr(fd), "..")
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Ino != to.ino {
		err = errMoved
	}
	if err == nil {
		_, err = up.Seek(to.next, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, up.Close())
	}
	return up, nil
}

// errMoved ends the look through a part of a tree.
var errMoved = errors.New("the directory was moved meanwhile")

// dirent is an entry of a directory, and where the one after it is.
type dirent struct {
	name string
	next int64
}

// dirents are what getdents64 has read, but for the directory itself and the one above.
func dirents(data []byte) iter.Seq[dirent] {
	return func(yield func(dirent) bool) {
		for len(data) > direntName {
			size := int(binary.NativeEndian.Uint16(data[16:]))
			name := unix.ByteSliceToString(data[direntName:size])
			next := int64(binary.NativeEndian.Uint64(data[8:]))
			data = data[size:]
			if name != "." && name != ".." && !yield(dirent{name, next}) {
				return
			}
		}
	}
}

// direntName is where a struct linux_dirent64 has its name, after the inode, the position, the size and the type.
const direntName = 19

// replaced tells that what was a directory a moment ago is none any more.
func replaced(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
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
