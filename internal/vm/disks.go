package vm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/hypervisor"
)

// disks keeps which layer is attached as which disk, and who uses it. A layer is attached once, however many
// containers share it, and leaves when nobody uses it and the agent has unmounted it.
type disks struct {
	plugger hypervisor.DiskPlugger // nil: the driver cannot
	max     int

	mu     sync.Mutex
	byPath map[string]*disk
	next   int
}

// disk is one layer. busy is non-nil and open while it is being attached or detached; only then the fields are
// touched without the lock, by whoever made busy.
type disk struct {
	id      string
	path    string
	address *agentv1.DiskAddress
	users   int
	busy    chan struct{}
}

func newDisks(plugger hypervisor.DiskPlugger, limit int) *disks {
	return &disks{plugger: plugger, max: limit, byPath: map[string]*disk{}}
}

// acquire attaches the layers that are not there and counts a user for each. On error it leaves no user behind.
func (d *disks) acquire(ctx context.Context, layers []string) ([]*agentv1.DiskAddress, error) {
	if len(layers) > 0 && d.plugger == nil {
		return nil, fmt.Errorf("attach layers: this hypervisor cannot attach disks: %w", errdefs.ErrNotImplemented)
	}
	var addresses []*agentv1.DiskAddress
	for i, path := range layers {
		address, err := d.acquireOne(ctx, path)
		if err != nil {
			d.drop(layers[:i])
			return nil, err
		}
		addresses = append(addresses, address)
	}
	return addresses, nil
}

func (d *disks) acquireOne(ctx context.Context, path string) (*agentv1.DiskAddress, error) {
	for {
		d.mu.Lock()
		k := d.byPath[path]
		switch {
		case k == nil:
			k, err := d.claimLocked(path)
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
			return nil, fmt.Errorf("attach layer %s: %w", path, context.Cause(ctx))
		}
	}
}

// claimLocked makes an entry that its caller attaches.
func (d *disks) claimLocked(path string) (*disk, error) {
	if d.max > 0 && len(d.byPath) >= d.max {
		return nil, fmt.Errorf("attach layer %s: the VM has %d disks already and cannot have more: %w", path, d.max, errdefs.ErrResourceExhausted)
	}
	d.next++
	k := &disk{id: fmt.Sprintf("layer%d", d.next), path: path, busy: make(chan struct{})}
	d.byPath[path] = k
	return k, nil
}

func (d *disks) attach(ctx context.Context, k *disk) (*agentv1.DiskAddress, error) {
	address, err := plug(ctx, d.plugger, k.id, k.path, true)
	d.mu.Lock()
	defer d.mu.Unlock()
	close(k.busy)
	k.busy = nil
	if err != nil {
		delete(d.byPath, k.path)
		return nil, fmt.Errorf("attach layer: %w", err)
	}
	k.address, k.users = address, 1
	return address, nil
}

// plug opens an image file and attaches it.
func plug(ctx context.Context, plugger hypervisor.DiskPlugger, id, path string, readOnly bool) (*agentv1.DiskAddress, error) {
	f, err := openImage(path, readOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the VMM has its own descriptor by then
	address, err := plugger.AttachDisk(ctx, hypervisor.Disk{ID: id, File: f, ReadOnly: readOnly})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return wireAddress(address)
}

func openImage(path string, readOnly bool) (*os.File, error) {
	flags := os.O_RDWR
	if readOnly {
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
	if err == nil && info.Mode().Type() != fs.FileMode(0) {
		err = fmt.Errorf("%s: it is no regular file: %w", path, errdefs.ErrInvalidArgument)
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
		return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_Serial{Serial: a.Serial}}, nil
	case hypervisor.BlkDevice:
		return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_Device{Device: a.Device}}, nil
	}
	return nil, fmt.Errorf("disk address of unknown kind %d: %w", a.Kind, errdefs.ErrInternal)
}

// drop takes a user from each layer and leaves it attached.
func (d *disks) drop(layers []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, path := range layers {
		if k := d.byPath[path]; k != nil && k.users > 0 {
			k.users--
		}
	}
}

// detach unplugs those of the disks that the guest says are free and that nobody uses. What the guest names and
// the host does not know is ignored: it is the guest's word only.
func (d *disks) detach(ctx context.Context, free []*agentv1.DiskAddress) error {
	for _, address := range free {
		k := d.claimFree(address)
		if k == nil {
			continue
		}
		err := d.plugger.DetachDisk(ctx, k.id)
		d.mu.Lock()
		close(k.busy)
		k.busy = nil
		if err == nil {
			delete(d.byPath, k.path)
		}
		d.mu.Unlock()
		if err != nil {
			return fmt.Errorf("detach layer %s: %w", k.path, err)
		}
	}
	return nil
}

func (d *disks) claimFree(address *agentv1.DiskAddress) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.byPath {
		if k.busy == nil && k.users == 0 && sameAddress(k.address, address) {
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
