package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

// vm is a running Firecracker.
type vm struct {
	*vmm.Machine
	cfg      hypervisor.Config
	slots    *vmm.Slots
	resizing sync.Mutex // one change of the memory at a time

	mu    sync.Mutex
	api   *vmm.API       // nil before it is connected to
	plugs map[string]int // by disk id: which plug of the VM it was; numbers are not used again
	next  int
}

// It is no hypervisor.Pauser: Firecracker 1.16 stops serving a guest's vsock when it resumes it, until the guest answers
// what it was never sent.
// Nor does it add processors: Firecracker cannot.
var (
	_ hypervisor.DiskPlugger   = (*vm)(nil)
	_ hypervisor.MemoryResizer = (*vm)(nil)
)

// newVM watches over a Firecracker that was just started, and owns it and the starter's ends of its pipes.
func newVM(cfg hypervisor.Config, proc *vmm.Process, s *starter) *vm {
	v := &vm{cfg: cfg, slots: vmm.NewSlots(maxDisks(len(cfg.NICs))), plugs: map[string]int{}}
	var log sync.WaitGroup
	log.Go(func() {
		io.Copy(proc.Stderr(), s.log) // ends when nobody can write any more
	})
	pipe := transport.NewClient(transport.Hybrid{Path: filepath.Join(cfg.RunDir, vsockSocket)}.Pipe())
	v.Machine = vmm.Watch(proc, s.Console, cfg.Console, pipe.Dial, func(m *vmm.Machine) error {
		pipe.Close()
		s.logKeeper.Close()
		log.Wait()
		s.log.Close()
		if api := v.control(); api != nil {
			api.Close()
		}
		return why(m)
	})
	return v
}

// why says how the guest ended, as its console tells: Firecracker knows of its reset and nothing else.
func why(m *vmm.Machine) error {
	if strings.Contains(m.Console.Lines(3), "reboot: Restarting system") {
		return hypervisor.ErrPoweredOff
	}
	if m.Success() {
		return errors.New("the guest reset itself, as a kernel does that panics")
	}
	return nil
}

// Shutdown waits for the guest's end and ends Firecracker when ctx ends.
func (v *vm) Shutdown(ctx context.Context) error {
	return v.Machine.Shutdown(ctx, func(context.Context) error { return v.Kill() })
}

func (v *vm) control() *vmm.API {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.api
}

// do has Firecracker do something; what its end has cut off is Unavailable.
func (v *vm) do(ctx context.Context, method, path string, body any) ([]byte, error) {
	return v.control().Do(ctx, method, path, body)
}

// AttachDisk plugs a disk into the running guest, which finds it when it looks for it.
func (v *vm) AttachDisk(ctx context.Context, disk hypervisor.Disk) (hypervisor.DiskAddress, error) {
	address, err := v.attach(ctx, disk)
	if err != nil {
		return hypervisor.DiskAddress{}, fmt.Errorf("attach disk %s: %w", disk.ID, err)
	}
	return address, nil
}

func (v *vm) attach(ctx context.Context, disk hypervisor.Disk) (address hypervisor.DiskAddress, err error) {
	if err := vmm.CheckDisk(disk); err != nil {
		return address, err
	}
	if err := vmm.GiveDisk(disk, v.cfg.User); err != nil {
		return address, err
	}
	if err := v.slots.Claim(disk.ID); err != nil {
		return address, err
	}
	keep := false
	defer func() { v.slots.Settle(disk.ID, keep) }()
	name := diskPrefix + disk.ID
	image, err := v.Show(name, disk.File, disk.ReadOnly)
	if err != nil {
		return address, err
	}
	r := driveRequest(disk, v.plug(disk.ID))
	if _, err := v.do(ctx, "PUT", r.path, r.body); err != nil {
		var refused *vmm.APIError
		if errors.As(err, &refused) {
			return address, errors.Join(fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition), v.Hide(name))
		}
		keep = true // nobody knows whether it is there
		return address, err
	}
	keep = true
	return hypervisor.DiskAddress{Kind: hypervisor.BlkSerial, Serial: serial(image)}, nil
}

// serial is what Firecracker tells the guest: device, special device and inode of the image.
func serial(image unix.Stat_t) string {
	id := fmt.Sprintf("%d%d%d", image.Dev, image.Rdev, image.Ino)
	return id[:min(len(id), maxSerial)]
}

// maxSerial is the length of a virtio disk's serial.
const maxSerial = 20

// plug numbers the plugs of the VM.
func (v *vm) plug(id string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.next++
	v.plugs[id] = v.next
	return v.next
}

// DetachDisk makes Firecracker let go of a disk's image. The device stays, as an empty one: Firecracker 1.16 gives a device
// that is plugged after one was unplugged another address than the guest, and cannot move it. So a VM has a limited number
// of plugs in its life.
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
	v.mu.Lock()
	r := emptyRequest(id, v.plugs[id])
	v.mu.Unlock()
	_, err := v.do(ctx, "PATCH", r.path, r.body)
	if err == nil {
		err = v.Hide(diskPrefix + id)
	}
	if err != nil {
		v.slots.Settle(id, true)
		return err
	}
	v.slots.Retire(id)
	return nil
}
