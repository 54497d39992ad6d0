package vmpod

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// UIDs hands out user ids, one for each sandbox, from a range that nobody else on the node uses.
type UIDs struct {
	first, last uint32

	mu     sync.Mutex
	owners map[uint32]string // by uid
	held   map[string]uint32 // by sandbox
	next   uint32
}

// NewUIDs takes the range with both ends; 0 and 0 is none: VMMs run as their shim does.
func NewUIDs(first, last uint32) *UIDs {
	return &UIDs{first: first, last: last, owners: map[uint32]string{}, held: map[string]uint32{}, next: first}
}

// allocate gives the sandbox an id, always the same one until release; 0 without a range. Ids are used in turn, so that
// one is not used again soon.
func (u *UIDs) allocate(sandbox string) (uint32, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.first == 0 {
		return 0, nil
	}
	if uid, ok := u.held[sandbox]; ok {
		return uid, nil
	}
	size := u.last - u.first + 1
	for i := range size {
		uid := u.first + (u.next-u.first+i)%size
		if _, taken := u.owners[uid]; !taken {
			u.owners[uid], u.held[sandbox] = sandbox, uid
			u.next = uid + 1
			return uid, nil
		}
	}
	return 0, fmt.Errorf("user id of the VMM: all %d of the range %d-%d are in use; widen vm.uids: %w", size, u.first, u.last, errdefs.ErrResourceExhausted)
}

// claim takes the id that a sandbox was given by an earlier process; it may be outside of today's range.
func (u *UIDs) claim(sandbox string, uid uint32) error {
	if uid == 0 {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if owner, taken := u.owners[uid]; taken && owner != sandbox {
		return fmt.Errorf("user id %d of sandbox %s is also that of %s: %w", uid, sandbox, owner, errdefs.ErrAlreadyExists)
	}
	u.owners[uid], u.held[sandbox] = sandbox, uid
	return nil
}

// release frees the sandbox's id, if it has one.
func (u *UIDs) release(sandbox string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if uid, ok := u.held[sandbox]; ok {
		delete(u.owners, uid)
		delete(u.held, sandbox)
	}
}
