package vm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/hypervisor"
)

// Disk is a file or a block device of the host that a guest gets as a disk.
type Disk struct {
	Path string
	// ReadOnly disks may be in use elsewhere.
	ReadOnly bool
	// Volume: what is on it outlives the pod. The guest loses it with its last user, whatever it says.
	Volume bool
}

// disks keeps what is attached as which disk, and who uses it. A disk is attached once, however many containers share it,
// and leaves when nobody uses it and the agent has let go of it.
type disks struct {
	plugger hypervisor.DiskPlugger // nil: the driver cannot
	max     int

	mu     sync.Mutex
	byFile map[Disk]*disk
	next   int
}

// disk is what is attached. busy is non-nil and open while it is being attached or detached; only then the fields are
// touched without the lock, by whoever made busy.
type disk struct {
	id      string
	file    Disk
	address *agentv1.DiskAddress
	users   int
	busy    chan struct{}
}

func newDisks(plugger hypervisor.DiskPlugger, limit int) *disks {
	return &disks{plugger: plugger, max: limit, byFile: map[Disk]*disk{}}
}

// acquire attaches the disks that are not there and counts a user for each. On error it leaves no user behind.
func (d *disks) acquire(ctx context.Context, wanted []Disk) ([]*agentv1.DiskAddress, error) {
	if len(wanted) > 0 && d.plugger == nil {
		return nil, fmt.Errorf("attach disks: this hypervisor cannot attach disks: %w", errdefs.ErrNotImplemented)
	}
	var addresses []*agentv1.DiskAddress
	for i, file := range wanted {
		address, err := d.acquireOne(ctx, file)
		if err != nil {
			d.drop(wanted[:i])
			return nil, err
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}

func (d *disks) acquireOne(ctx context.Context, file Disk) (*agentv1.DiskAddress, error) {
	for {
		d.mu.Lock()
		k := d.byFile[file]
		switch {
		case k == nil:
			k, err := d.claimLocked(file)
			d.mu.Unlock()
			if err != nil {
				return nil, err
			}
			return d.attach(ctx, k)
		case k.busy == nil:
			k.users++
			d.mu.Unlock()
			return k.address, nil
		}
		busy := k.busy
		d.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, fmt.Errorf("attach disk %s: %w", file.Path, context.Cause(ctx))
		}
	}
}

// claimLocked makes an entry that its caller attaches.
func (d *disks) claimLocked(file Disk) (*disk, error) {
	if d.max > 0 && len(d.byFile) >= d.max {
		return nil, fmt.Errorf("attach disk %s: the VM has %d disks already and cannot have more: %w", file.Path, d.max, errdefs.ErrResourceExhausted)
	}
	for other := range d.byFile {
		// Two disks of one device have a cache each in the guest: who reads would not see what is written.
		if other.Path == file.Path && other.ReadOnly != file.ReadOnly {
			return nil, fmt.Errorf("attach disk %s: the pod has it both read-only and writable: let all of its containers use it in the same way: %w", file.Path, errdefs.ErrFailedPrecondition)
		}
	}
	d.next++
	k := &disk{id: fmt.Sprintf("disk%d", d.next), file: file, busy: make(chan struct{})}
	d.byFile[file] = k
	return k, nil
}

func (d *disks) attach(ctx context.Context, k *disk) (*agentv1.DiskAddress, error) {
	address, err := plug(ctx, d.plugger, k.id, k.file)
	d.mu.Lock()
	defer d.mu.Unlock()
	close(k.busy)
	k.busy = nil
	if err != nil {
		delete(d.byFile, k.file)
		return nil, fmt.Errorf("attach disk: %w", err)
	}
	k.address, k.users = address, 1
	return address, nil
}

// plug opens a disk and attaches it.
func plug(ctx context.Context, plugger hypervisor.DiskPlugger, id string, disk Disk) (*agentv1.DiskAddress, error) {
	f, err := openDisk(disk)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the VMM has its own descriptor by then
	address, err := plugger.AttachDisk(ctx, hypervisor.Disk{ID: id, File: f, ReadOnly: disk.ReadOnly})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", disk.Path, err)
	}
	return wireAddress(address)
}

func openDisk(disk Disk) (*os.File, error) {
	path, flags := disk.Path, os.O_RDWR
	if disk.ReadOnly {
		flags = os.O_RDONLY
	}
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s: the path of a disk image must be absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	info, err := f.Stat()
	if err == nil && info.Mode().Type() != fs.FileMode(0) && info.Mode().Type() != fs.ModeDevice {
		err = fmt.Errorf("%s: it is neither a regular file nor a block device: %w", path, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func wireAddress(a hypervisor.DiskAddress) (*agentv1.DiskAddress, error) {
	switch a.Kind {
	case hypervisor.SCSILUN:
		return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_ScsiLun{ScsiLun: a.LUN}}, nil
	case hypervisor.BlkSerial:
		return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_Serial{Serial: a.Serial}, Bytes: a.Bytes}, nil
	case hypervisor.BlkDevice:
		return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_Device{Device: a.Device}}, nil
	}
	return nil, fmt.Errorf("disk address of unknown kind %d: %w", a.Kind, errdefs.ErrInternal)
}

// drop takes a user from each disk and leaves it attached.
func (d *disks) drop(files []Disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, file := range files {
		if k := d.byFile[file]; k != nil && k.users > 0 {
			k.users--
		}
	}
}

// detach unplugs what nobody uses: layers that the guest says are free, and volumes. What the guest names and the host
// does not know is ignored: it is the guest's word only.
func (d *disks) detach(ctx context.Context, free []*agentv1.DiskAddress) error {
	for k := d.claimFree(free); k != nil; k = d.claimFree(free) {
		err := d.plugger.DetachDisk(ctx, k.id)
		d.mu.Lock()
		close(k.busy)
		k.busy = nil
		if err == nil {
			delete(d.byFile, k.file)
		}
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("detach disk %s: %w", k.file.Path, err)
		}
	}
	return nil
}

func (d *disks) claimFree(free []*agentv1.DiskAddress) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.byFile {
		if k.busy != nil || k.users > 0 {
			continue
		}
		if k.file.Volume || slices.ContainsFunc(free, func(a *agentv1.DiskAddress) bool { return sameAddress(k.address, a) }) {
			k.busy = make(chan struct{})
			return k
		}
	}
	return nil
}

func sameAddress(a, b *agentv1.DiskAddress) bool {
	switch a := a.GetAddress().(type) {
	case *agentv1.DiskAddress_ScsiLun:
		b, ok := b.GetAddress().(*agentv1.DiskAddress_ScsiLun)
		return ok && a.ScsiLun == b.ScsiLun
	case *agentv1.DiskAddress_Serial:
		b, ok := b.GetAddress().(*agentv1.DiskAddress_Serial)
		return ok && a.Serial == b.Serial
	case *agentv1.DiskAddress_Device:
		b, ok := b.GetAddress().(*agentv1.DiskAddress_Device)
		return ok && a.Device == b.Device
	}
	return false
}
