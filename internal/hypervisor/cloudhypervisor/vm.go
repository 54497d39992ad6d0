package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

// vm is a running Cloud Hypervisor.
type vm struct {
	*vmm.Machine
	api   *vmm.API
	meter *vmm.Meter
	cfg   hypervisor.Config
	slots *vmm.Slots
	added added
	// memory is what guest and host have in common.
	memory *os.File

	resizing sync.Mutex // one change of the processors at a time; it guards what follows
	vcpus    int        // that there are to be
	leaving  bool       // the guest may have some more

	mu      sync.Mutex
	reset   bool                     // the guest reset itself
	quit    bool                     // it was told to quit
	removed map[string]chan struct{} // by the id of a disk that is being detached
}

var (
	_ hypervisor.DiskPlugger   = (*vm)(nil)
	_ hypervisor.Pauser        = (*vm)(nil)
	_ hypervisor.MemoryResizer = (*vm)(nil)
	_ hypervisor.VCPUResizer   = (*vm)(nil)
	_ hypervisor.Meter         = (*vm)(nil)
	_ hypervisor.MemorySharer  = (*vm)(nil)
)

// newVM watches over a Cloud Hypervisor that was just started, and owns it and the starter's ends.
func newVM(cfg hypervisor.Config, proc *vmm.Process, s *starter) *vm {
	v := &vm{
		api: vmm.NewAPI("Cloud Hypervisor", s.api), cfg: cfg, vcpus: cfg.VCPUs, slots: vmm.NewSlots(maxDisks(len(cfg.NICs), cfg.Reclaim)),
		removed: map[string]chan struct{}{}, memory: s.Memory,
	}
	v.added.vm = v
	v.meter = vmm.NewMeter(v.readCounters)
	var events sync.WaitGroup
	events.Go(func() { readEvents(s.events, func(e event) { v.observe(e, proc) }) })
	socket := transport.Hybrid{Path: filepath.Join(cfg.RunDir, vsockSocket)}
	pipe := transport.NewClient(socket.Pipe())
	v.Machine = vmm.Watch(proc, s.Console, cfg.Console, socket.Beside(pipe), func(m *vmm.Machine) error {
		pipe.Close()
		events.Wait()
		s.events.Close()
		v.api.Close()
		v.meter.Close()
		v.memory.Close()
		return v.why(m)
	})
	return v
}

// observe notes what happens to the guest. One that resets itself would be booted again.
func (v *vm) observe(e event, proc *vmm.Process) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch e.Source + " " + e.Event {
	case "vm rebooting":
		v.reset = true
		proc.Kill() // what cannot be killed is found by whoever waits
	case "vm device-removed":
		if gone := v.removed[e.Properties["id"]]; gone != nil {
			close(gone)
			delete(v.removed, e.Properties["id"])
		}
	}
}

// why says how the guest ended; nil is for what the exit status says.
func (v *vm) why(m *vmm.Machine) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.reset:
		return errReset
	case v.quit:
		return errors.New("Cloud Hypervisor was told to quit")
	case m.Success():
		return hypervisor.ErrPoweredOff
	}
	return nil
}

// do has Cloud Hypervisor do something.
func (v *vm) do(ctx context.Context, action string, body any, files ...*os.File) error {
	_, err := v.api.Do(ctx, "PUT", apiPrefix+action, body, files...)
	return err
}

// Shutdown waits for the guest's end; when ctx ends first Cloud Hypervisor is told to quit.
func (v *vm) Shutdown(ctx context.Context) error {
	return v.Machine.Shutdown(ctx, func(ctx context.Context) error {
		v.mu.Lock()
		v.quit = true
		v.mu.Unlock()
		return v.do(ctx, "vmm.shutdown", nil)
	})
}

// CommonMemory is what guest and host have in common.
func (v *vm) CommonMemory() *os.File { return v.memory }

// Pause stops the guest's processors.
func (v *vm) Pause(ctx context.Context) error { return v.do(ctx, "vm.pause", nil) }

// Resume continues them.
func (v *vm) Resume(ctx context.Context) error { return v.do(ctx, "vm.resume", nil) }

// AttachDisk plugs a disk into the running guest.
func (v *vm) AttachDisk(ctx context.Context, disk hypervisor.Disk) (hypervisor.DiskAddress, error) {
	r := diskRequest(disk)
	return v.Machine.AttachDisk(v.slots, disk, r.Path, func(unix.Stat_t) (hypervisor.DiskAddress, error) {
		return hypervisor.DiskAddress{Kind: hypervisor.BlkSerial, Serial: r.Serial}, v.do(ctx, "vm.add-disk", r)
	})
}

// DetachDisk unplugs a disk and waits until the guest has let go of it.
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
	keep := true
	defer func() { v.slots.Settle(id, keep) }()
	gone := make(chan struct{})
	v.mu.Lock()
	v.removed[id] = gone
	v.mu.Unlock()
	defer func() {
		v.mu.Lock()
		delete(v.removed, id)
		v.mu.Unlock()
	}()
	if err := v.do(ctx, "vm.remove-device", map[string]string{"id": id}); err != nil {
		return err
	}
	select {
	case <-gone:
	case <-v.Done():
		return v.Ended()
	case <-ctx.Done():
		return fmt.Errorf("the guest has not let go of it: %w", context.Cause(ctx))
	}
	if err := v.Hide(vmm.DiskDir + "/" + id); err != nil {
		return err
	}
	keep = false
	return nil
}
