package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// layer is one read-only disk. Its lock is held over mounting and unmounting, so that nobody uses a disk that
// is being removed; users and refs count who has it in hand and who has it mounted.
type layer struct {
	mu    sync.Mutex
	users int // guarded by Store.mu
	refs  int
	addr  *agentv1.DiskAddress
	dir   string
	// keepsLostFound: the image itself has something in /lost+found.
	keepsLostFound bool
}

func (s *Store) takeLayer(key string, addr *agentv1.DiskAddress) *layer {
	s.mu.Lock()
	l, ok := s.layers[key]
	if !ok {
		s.nextLayer++
		l = &layer{addr: addr, dir: filepath.Join(s.dir, "layers", strconv.Itoa(s.nextLayer))}
		s.layers[key] = l
	}
	l.users++
	s.mu.Unlock()
	l.mu.Lock()
	return l
}

func (s *Store) putLayer(key string, l *layer) {
	idle := l.refs == 0
	l.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.users--; l.users == 0 && idle {
		delete(s.layers, key)
	}
}

// acquire mounts a layer, or counts one more user of it.
func (s *Store) acquire(ctx context.Context, addr *agentv1.DiskAddress) (*layer, error) {
	key, err := diskKey(addr)
	if err != nil {
		return nil, err
	}
	l := s.takeLayer(key, addr)
	defer s.putLayer(key, l)
	if l.refs == 0 {
		if err := s.mountLayer(ctx, l); err != nil {
			return nil, fmt.Errorf("layer on %s: %w", key, err)
		}
	}
	l.refs++
	return l, nil
}

func (s *Store) mountLayer(ctx context.Context, l *layer) error {
	device, err := s.disks.wait(ctx, l.addr)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	if err := unix.Mount(device, l.dir, "ext4", unix.MS_RDONLY|unix.MS_NOATIME, ""); err != nil {
		return errors.Join(fmt.Errorf("mount %s: %w", device, err), os.Remove(l.dir))
	}
	entries, err := os.ReadDir(filepath.Join(l.dir, lostFound))
	l.keepsLostFound = err == nil && len(entries) > 0
	return nil
}

// release gives a layer back and reports whether nobody uses its disk any more; the guest has forgotten it then.
func (s *Store) release(addr *agentv1.DiskAddress, mounted bool) (free bool, err error) {
	key, err := diskKey(addr)
	if err != nil {
		return false, err
	}
	l := s.takeLayer(key, addr)
	defer s.putLayer(key, l)
	if mounted {
		if l.refs--; l.refs == 0 {
			if err := unmount(l.dir); err != nil {
				return false, fmt.Errorf("layer on %s: %w", key, err)
			}
		}
	}
	if l.refs > 0 {
		return false, nil
	}
	return true, s.disks.remove(l.addr)
}

func unmount(dir string) error {
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.Remove(dir)
}
