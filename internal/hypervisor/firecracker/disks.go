package firecracker

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// maxSerial is the length of a virtio disk's serial.
const maxSerial = 20

// drives are the devices of a VM. None is ever unplugged: Firecracker 1.16 gives a device that is plugged after one was unplugged
// another address than the guest, and cannot move it. One whose disk is detached waits, with the empty image, for the next
// disk of the same access, which cannot be changed.
type drives struct {
	max int

	mu    sync.Mutex
	named int // so many names were used; none is used again
	there int // so many are plugged
	of    map[string]device
	spare map[bool][]device // those with the empty image, by whether they can only be read
}

type device struct {
	name     string
	readOnly bool
}

func newDrives(most int) *drives {
	return &drives{max: most, of: map[string]device{}, spare: map[bool][]device{}}
}

// newPlaceholders are all devices that the VM will ever have.
func newPlaceholders(n int) *drives {
	d := newDrives(n)
	for ; d.there < n; d.there++ {
		d.named++
		v := device{fmt.Sprintf("drive%d", d.named), d.there >= writablePlaceholders}
		d.spare[v.readOnly] = append(d.spare[v.readOnly], v)
	}
	return d
}

// placeholders are those that the VM is started with.
func (d *drives) placeholders() []device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Concat(d.spare[false], d.spare[true])
}

// take finds a device for a disk: a spare one, or a name for a new one.
func (d *drives) take(disk hypervisor.Disk) (v device, spare bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if unused := d.spare[disk.ReadOnly]; len(unused) > 0 {
		v, spare = unused[len(unused)-1], true
		d.spare[disk.ReadOnly] = unused[:len(unused)-1]
	} else if d.there >= d.max {
		return v, false, fmt.Errorf("all %d drives of this VM are in use, or wait for disks of another access: %w", d.max, errdefs.ErrResourceExhausted)
	} else {
		d.named, d.there = d.named+1, d.there+1
		v = device{fmt.Sprintf("drive%d", d.named), disk.ReadOnly}
	}
	d.of[disk.ID] = v
	return v, spare, nil
}

// giveBack makes the device of a disk a spare one.
func (d *drives) giveBack(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.of[id]
	d.spare[v.readOnly] = append(d.spare[v.readOnly], v)
	delete(d.of, id)
}

// forget a device that was not plugged.
func (d *drives) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.there--
	delete(d.of, id)
}

func (d *drives) find(id string) device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.of[id]
}

// AttachDisk plugs a disk into the running guest, which finds it when it looks for it, or gives it to a device that waits
// for one.
func (v *vm) AttachDisk(ctx context.Context, disk hypervisor.Disk) (hypervisor.DiskAddress, error) {
	return v.Machine.AttachDisk(v.slots, disk, diskPrefix+disk.ID, func(image unix.Stat_t) (hypervisor.DiskAddress, error) {
		bytes, err := vmm.DiskBytes(disk)
		if err == nil {
			err = v.plug(ctx, disk)
		} else {
			err = vmm.NotAsked{Err: err}
		}
		return hypervisor.DiskAddress{Kind: hypervisor.BlkSerial, Serial: serial(image), Bytes: bytes}, err
	})
}

// plug gives a disk that Firecracker can see to a device.
func (v *vm) plug(ctx context.Context, disk hypervisor.Disk) error {
	if v.running && !v.can.early {
		if err := v.pipe.Ready(ctx); err != nil {
			return vmm.NotAsked{Err: err}
		}
	}
	to, spare, err := v.drives.take(disk)
	if err != nil {
		return vmm.NotAsked{Err: err}
	}
	release := v.drives.forget
	method, r := "PUT", driveRequest(disk, to.name, v.cfg.DiskRate)
	if spare {
		release = v.drives.giveBack
		if v.running {
			method, r = "PATCH", imageRequest(to.name, diskPrefix+disk.ID)
		}
	}
	_, err = v.do(ctx, method, r.path, r.body)
	if vmm.Undone(err) {
		release(disk.ID)
	}
	return err
}

// serial is what Firecracker tells the guest: device, special device and inode of the image.
func serial(image unix.Stat_t) string {
	id := fmt.Sprintf("%d%d%d", image.Dev, image.Rdev, image.Ino)
	return id[:min(len(id), maxSerial)]
}

// DetachDisk makes Firecracker let go of a disk's image. The device stays.
func (v *vm) DetachDisk(ctx context.Context, id string) error {
	if err := v.detach(ctx, id); err != nil {
		return fmt.Errorf("detach disk %s: %w", id, err)
	}
	return nil
}

func (v *vm) detach(ctx context.Context, id string) error {
	if err := v.slots.ClaimAttached(id); err != nil {
		return err
	}
	r := imageRequest(v.drives.find(id).name, emptyPath)
	_, err := v.do(ctx, "PATCH", r.path, r.body)
	if err == nil {
		err = v.Hide(diskPrefix + id)
	}
	if err != nil {
		v.slots.Settle(id, true)
		return err
	}
	v.drives.giveBack(id)
	v.slots.Settle(id, false)
	return nil
}
