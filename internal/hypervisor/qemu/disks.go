package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu/qmp"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// disks knows which LUN is whose. A LUN is claimed before QEMU hears of it and given back after QEMU has
// forgotten it, so that no two calls ever use one.
type disks struct {
	mu   sync.Mutex
	luns map[uint32]string
	busy map[uint32]bool // being attached or detached
}

func newDisks(initial []hypervisor.Disk) *disks {
	d := &disks{luns: make(map[uint32]string), busy: make(map[uint32]bool)}
	for lun, disk := range initial {
		d.luns[uint32(lun)] = disk.ID
	}
	return d
}

// claim finds a free LUN for a new disk.
func (d *disks) claim(id string) (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, taken := range d.luns {
		if taken == id {
			return 0, fmt.Errorf("it is attached: %w", errdefs.ErrAlreadyExists)
		}
	}
	for lun := range uint32(maxLUNs) {
		if _, taken := d.luns[lun]; !taken {
			d.luns[lun], d.busy[lun] = id, true
			return lun, nil
		}
	}
	return 0, fmt.Errorf("all %d places are taken: %w", maxLUNs, errdefs.ErrResourceExhausted)
}

// claimAttached finds the LUN of a disk to detach.
func (d *disks) claimAttached(id string) (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for lun, taken := range d.luns {
		if taken != id {
			continue
		}
		if d.busy[lun] {
			return 0, fmt.Errorf("it is being attached or detached: %w", errdefs.ErrFailedPrecondition)
		}
		d.busy[lun] = true
		return lun, nil
	}
	return 0, fmt.Errorf("no such disk: %w", errdefs.ErrNotFound)
}

// settle ends a claim; the LUN is kept or free again.
func (d *disks) settle(lun uint32, keep bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, lun)
	if !keep {
		delete(d.luns, lun)
	}
}

// AttachDisk plugs a disk into the running guest.
func (v *vm) AttachDisk(ctx context.Context, disk hypervisor.Disk) (hypervisor.DiskAddress, error) {
	lun, err := v.attach(ctx, disk)
	if err != nil {
		return hypervisor.DiskAddress{}, fmt.Errorf("attach disk %s: %w", disk.ID, err)
	}
	return hypervisor.DiskAddress{Kind: hypervisor.SCSILUN, LUN: lun}, nil
}

func (v *vm) attach(ctx context.Context, disk hypervisor.Disk) (uint32, error) {
	if err := vmm.CheckDisk(disk); err != nil {
		return 0, err
	}
	f, err := diskFile(disk)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lun, err := v.disks.claim(disk.ID)
	if err != nil {
		return 0, err
	}
	monitor := v.currentMonitor()
	steps := []struct {
		do   func() error
		undo func(context.Context) error
	}{
		{func() error {
			return monitor.Execute(ctx, "add-fd", map[string]any{"fdset-id": fdset(lun)}, nil, f)
		}, func(ctx context.Context) error { return v.removeFD(ctx, lun) }},
		{func() error { return monitor.Execute(ctx, "blockdev-add", blockdev(disk, lun), nil) },
			func(ctx context.Context) error { return v.removeNode(ctx, lun) }},
		{func() error { return monitor.Execute(ctx, "device_add", scsiDisk(disk, lun), nil) },
			func(ctx context.Context) error { return v.removeDevice(ctx, lun) }},
	}
	for i, step := range steps {
		err := step.do()
		if err == nil {
			continue
		}
		// What QEMU refused it has not done; what it did not answer to it may have done.
		var refused *qmp.Error
		if errors.As(err, &refused) {
			i--
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hypervisor.ControlTimeout)
		defer cancel()
		clean := true
		for ; i >= 0; i-- {
			if undoErr := steps[i].undo(ctx); undoErr != nil && !errdefs.IsNotFound(undoErr) {
				err, clean = errors.Join(err, undoErr), false
			}
		}
		v.disks.settle(lun, !clean)
		return 0, err
	}
	v.disks.settle(lun, true)
	return lun, nil
}

// DetachDisk unplugs a disk. A disk that could not be removed as a whole can be detached again.
func (v *vm) DetachDisk(ctx context.Context, id string) error {
	if err := v.detach(ctx, id); err != nil {
		return fmt.Errorf("detach disk %s: %w", id, err)
	}
	return nil
}

func (v *vm) detach(ctx context.Context, id string) error {
	lun, err := v.disks.claimAttached(id)
	if err != nil {
		return err
	}
	for _, remove := range []func(context.Context, uint32) error{v.removeDevice, v.removeNode, v.removeFD} {
		if err := remove(ctx, lun); err != nil && !errdefs.IsNotFound(err) {
			v.disks.settle(lun, true)
			return err
		}
	}
	v.disks.settle(lun, false)
	return nil
}

// removeDevice takes the disk from the guest and waits until QEMU has let go of it.
func (v *vm) removeDevice(ctx context.Context, lun uint32) error {
	return v.unplug(ctx, deviceID(lun))
}

func (v *vm) removeNode(ctx context.Context, lun uint32) error {
	return v.currentMonitor().Execute(ctx, "blockdev-del", map[string]any{"node-name": nodeName(lun)}, nil)
}

func (v *vm) removeFD(ctx context.Context, lun uint32) error {
	return v.currentMonitor().Execute(ctx, "remove-fd", map[string]any{"fdset-id": fdset(lun)}, nil)
}

// diskFile duplicates the image's descriptor. QEMU takes from a set only a descriptor whose access mode is
// exactly what it would open the file with, so a read-only disk of a writable file is opened anew.
func diskFile(d hypervisor.Disk) (*os.File, error) {
	raw, err := d.File.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var f *os.File
	var opErr error
	err = raw.Control(func(fd uintptr) { f, opErr = openImage(int(fd), d.ReadOnly) })
	if err = errors.Join(err, opErr); err != nil {
		return nil, fmt.Errorf("image %s: %w", d.File.Name(), err)
	}
	return f, nil
}

func openImage(fd int, readOnly bool) (*os.File, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	switch mode := flags & unix.O_ACCMODE; {
	case readOnly && mode != unix.O_RDONLY:
		f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil {
			return nil, fmt.Errorf("open it for reading alone: %w: %w", err, vmm.ErrorClass(err))
		}
		return f, nil
	case !readOnly && mode != unix.O_RDWR:
		return nil, fmt.Errorf("a writable disk needs a file that is open for reading and writing: %w", errdefs.ErrInvalidArgument)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate its descriptor: %w: %w", err, vmm.ErrorClass(err))
	}
	return os.NewFile(uintptr(dup), "image"), nil
}
