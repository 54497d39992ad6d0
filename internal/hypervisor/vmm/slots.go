package vmm

import (
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Slots knows which disks are attached and how many may be. A disk is claimed before its VMM hears of it and given back
// after the VMM has forgotten it, so that no two calls work on one.
type Slots struct {
	max int

	mu      sync.Mutex
	settled map[string]bool // by id; false while a disk is being attached or detached
}

// PCISlots are on a guest's one bus.
const PCISlots = 32

// MaxDisks is how many disks a VM has PCI slots for beside its VMM's own devices and its cards; the device that gives memory back
// has one as well.
func MaxDisks(own, nics int, reclaim bool) int {
	n := PCISlots - own - nics
	if reclaim {
		n--
	}
	return n
}

// NewSlots has room for so many.
func NewSlots(n int) *Slots { return &Slots{max: n, settled: map[string]bool{}} }

// Claim takes a slot for a new disk.
func (s *Slots) Claim(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.settled[id]; there {
		return fmt.Errorf("it is attached: %w", errdefs.ErrAlreadyExists)
	}
	if len(s.settled) >= s.max {
		return fmt.Errorf("all %d places that this VM has for disks are taken: %w", s.max, errdefs.ErrResourceExhausted)
	}
	s.settled[id] = false
	return nil
}

// ClaimAttached takes a disk to detach.
func (s *Slots) ClaimAttached(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	settled, there := s.settled[id]
	switch {
	case !there:
		return fmt.Errorf("no such disk: %w", errdefs.ErrNotFound)
	case !settled:
		return fmt.Errorf("it is being attached or detached: %w", errdefs.ErrFailedPrecondition)
	}
	s.settled[id] = false
	return nil
}

// Settle ends a claim: the disk is attached, or its slot is free.
func (s *Slots) Settle(id string, attached bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if attached {
		s.settled[id] = true
	} else {
		delete(s.settled, id)
	}
}

// AttachDisk shows a disk's image to the VMM under a name and has it plugged. plug gets what the VMM sees there; it tells with
// its error whether the VMM may have the disk all the same.
func (m *Machine) AttachDisk(slots *Slots, disk hypervisor.Disk, name string, plug func(unix.Stat_t) (hypervisor.DiskAddress, error)) (hypervisor.DiskAddress, error) {
	address, err := m.attachDisk(slots, disk, name, plug)
	if err != nil {
		return hypervisor.DiskAddress{}, fmt.Errorf("attach disk %s: %w", disk.ID, err)
	}
	return address, nil
}

func (m *Machine) attachDisk(slots *Slots, disk hypervisor.Disk, name string, plug func(unix.Stat_t) (hypervisor.DiskAddress, error)) (address hypervisor.DiskAddress, err error) {
	if err := CheckDisk(disk); err != nil {
		return address, err
	}
	if err := GiveDisk(disk, m.user()); err != nil {
		return address, err
	}
	if err := slots.Claim(disk.ID); err != nil {
		return address, err
	}
	keep := false
	defer func() { slots.Settle(disk.ID, keep) }()
	seen, err := m.Show(name, disk.File, disk.ReadOnly)
	if err != nil {
		return address, err
	}
	address, err = plug(seen)
	if Undone(err) {
		return address, errors.Join(err, m.Hide(name))
	}
	keep = true // after another error nobody knows whether it is there
	return address, err
}
