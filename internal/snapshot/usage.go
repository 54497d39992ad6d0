package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// size is what files occupy: bytes that are allocated, and inodes.
type size struct{ bytes, inodes uint64 }

// Usage is what the layers occupy: bytes that are allocated, and inodes. Each is looked through once.
func (l *Layers) Usage(ctx context.Context) (bytes, inodes uint64, err error) {
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", l.form.what, classify(err))
	}
	for _, e := range entries {
		s, err := l.size(ctx, e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return 0, 0, fmt.Errorf("usage of %s: %w", l.form.what, classify(err))
		}
		bytes += s.bytes
		inodes += s.inodes
	}
	return bytes, inodes, nil
}

func (l *Layers) size(ctx context.Context, name string) (size, error) {
	l.mu.Lock()
	s, known := l.sizes[name]
	l.mu.Unlock()
	if known {
		return s, nil
	}
	s, err := measure(ctx, filepath.Join(l.root, name))
	if _, finished := l.parseName(name); err != nil || !finished {
		return s, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := os.Lstat(filepath.Join(l.root, name)); err != nil {
		return size{}, err
	}
	l.sizes[name] = s
	return s, nil
}

// measure counts a file, or a directory and all below it, each inode once.
func measure(ctx context.Context, root string) (sum size, err error) {
	linked := map[uint64]struct{}{}
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var info fs.FileInfo
		if err == nil {
			info, err = entry.Info()
		}
		if errors.Is(err, fs.ErrNotExist) && path != root { // of a layer that is being made or removed
			return nil
		} else if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !info.IsDir() {
			if _, again := linked[st.Ino]; again {
				return nil
			}
			linked[st.Ino] = struct{}{}
		}
		sum.bytes += uint64(st.Blocks) * 512
		sum.inodes++
		return nil
	})
	return sum, err
}
