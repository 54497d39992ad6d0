package rootfs

import (
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/pistis-run/pistis/internal/task"
)

const (
	// usageFresh is how long a measurement is good, so that statistics do not walk the disk all the time.
	usageFresh = 10 * time.Second
	// maxEntries and maxWalk bound one measurement; what lies beyond is not counted.
	maxEntries = 1 << 20
	maxWalk    = 5 * time.Second
)

type usage struct {
	mu            sync.Mutex
	at            time.Time
	bytes, inodes uint64
}

// Usage returns what a container's writable layer uses on the scratch file system, at most 10 s old.
// A layer of more than a million files is counted in part. An unknown id uses nothing.
func (s *Store) Usage(id string) (bytes, inodes uint64) {
	s.mu.Lock()
	root, ok := s.containers[id]
	s.mu.Unlock()
	if !ok {
		return 0, 0
	}
	u := &root.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.at.IsZero() || time.Since(u.at) > usageFresh {
		u.bytes, u.inodes = measure(filepath.Join(root.dir, "upper"))
		u.at = time.Now()
	}
	return u.bytes, u.inodes
}

func measure(dir string) (bytes, inodes uint64) {
	type file struct{ dev, ino uint64 }
	linked := map[file]bool{}
	end := time.Now().Add(maxWalk)
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		if inodes >= maxEntries || inodes%1024 == 1023 && time.Now().After(end) {
			return filepath.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil
		}
		if st.Nlink > 1 && !info.IsDir() {
			f := file{st.Dev, st.Ino}
			if linked[f] {
				return nil
			}
			linked[f] = true
		}
		bytes += uint64(st.Blocks) * 512
		inodes++
		return nil
	})
	return bytes, inodes
}

// FileSystem is the one that writable layers are on; nil before Setup.
func (s *Store) FileSystem() *task.FileSystem {
	s.mu.Lock()
	scratch := s.scratch
	s.mu.Unlock()
	var st syscall.Statfs_t
	if scratch == "" || syscall.Statfs(scratch, &st) != nil {
		return nil
	}
	return &task.FileSystem{Bytes: st.Blocks * uint64(st.Bsize), Inodes: st.Files, FreeInodes: st.Ffree}
}
