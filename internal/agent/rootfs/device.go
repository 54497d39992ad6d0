package rootfs

import (
	"context"
	"sync"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// devices counts the containers that have a disk as a block device. The lock is held while one appears or is removed, so
// that nobody gets what is about to go.
type devices struct {
	mu    sync.Mutex
	users map[string]int
}

// AcquireDevice waits for a disk, counts a user and returns the path of its device.
func (s *Store) AcquireDevice(ctx context.Context, addr *agentv1.DiskAddress) (string, error) {
	key, err := diskKey(addr)
	if err != nil {
		return "", err
	}
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	path, err := s.disks.wait(ctx, addr)
	if err != nil {
		return "", err
	}
	s.devices.users[key]++
	return path, nil
}

// ReleaseDevice ends a use and reports whether it was the last; the guest has forgotten the disk then.
func (s *Store) ReleaseDevice(addr *agentv1.DiskAddress) (free bool, err error) {
	key, err := diskKey(addr)
	if err != nil {
		return false, err
	}
	s.devices.mu.Lock()
	defer s.devices.mu.Unlock()
	if s.devices.users[key]--; s.devices.users[key] > 0 {
		return false, nil
	}
	delete(s.devices.users, key)
	return true, s.disks.remove(addr)
}
