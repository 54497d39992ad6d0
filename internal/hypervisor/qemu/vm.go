package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu/qmp"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// vm is a running QEMU.
type vm struct {
	*vmm.Machine
	disks  *disks
	sizes  sizes
	meter  *vmm.Meter
	memory *os.File

	mu      sync.Mutex
	monitor *qmp.Client
	reason  string // of QEMU's SHUTDOWN event
}

var (
	_ hypervisor.DiskPlugger   = (*vm)(nil)
	_ hypervisor.Pauser        = (*vm)(nil)
	_ hypervisor.MemoryResizer = (*vm)(nil)
	_ hypervisor.VCPUResizer   = (*vm)(nil)
	_ hypervisor.Meter         = (*vm)(nil)
	_ hypervisor.MemorySharer  = (*vm)(nil)
)

// newVM watches over a QEMU that was just started, and owns it and the gift's sockets from now on, except
// the monitor's.
func newVM(cfg hypervisor.Config, proc *vmm.Process, g *gift) *vm {
	dial, pipe := g.dialer()
	v := &vm{disks: newDisks(cfg.Disks), sizes: sizes{cfg: cfg}, memory: g.memory}
	v.meter = vmm.NewMeter(v.readCounters)
	v.Machine = vmm.Watch(proc, g.console, cfg.Console, dial, func(m *vmm.Machine) error {
		if pipe != nil {
			<-pipe.Done() // the last bytes of streams are in
			pipe.Close()
		}
		if monitor := v.currentMonitor(); monitor != nil {
			<-monitor.Done() // the last events are in
			monitor.Close()
		}
		v.meter.Close()
		if v.memory != nil {
			v.memory.Close()
		}
		return v.why(m)
	})
	return v
}

func (v *vm) setMonitor(c *qmp.Client) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.monitor = c
}

func (v *vm) currentMonitor() *qmp.Client {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.monitor
}

// observe notes why QEMU is about to exit.
func (v *vm) observe(e qmp.Event) {
	if e.Name != "SHUTDOWN" {
		return
	}
	var data struct{ Reason string }
	if json.Unmarshal(e.Data, &data) != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reason = data.Reason
}

// why says how the guest ended; nil is for what QEMU's exit status says.
func (v *vm) why(m *vmm.Machine) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !m.Success() {
		return nil
	}
	switch v.reason {
	case "guest-shutdown":
		return hypervisor.ErrPoweredOff
	case "guest-reset":
		return errors.New("the guest reset itself, as a kernel does that panics")
	case "host-qmp-quit":
		return errors.New("QEMU was told to quit")
	case "":
		return nil
	}
	return fmt.Errorf("QEMU shut down: %s", v.reason)
}

// Shutdown waits for the guest's end; when ctx ends first QEMU is told to quit.
func (v *vm) Shutdown(ctx context.Context) error {
	return v.Machine.Shutdown(ctx, func(ctx context.Context) error { return v.tell(ctx, "quit") })
}

// CommonMemory is what the guest has as a device, where the machine and this QEMU have such.
func (v *vm) CommonMemory() *os.File { return v.memory }

// Pause stops the guest's processors.
func (v *vm) Pause(ctx context.Context) error { return v.tell(ctx, "stop") }

// Resume continues them.
func (v *vm) Resume(ctx context.Context) error { return v.tell(ctx, "cont") }

// tell has QEMU run a command without arguments.
func (v *vm) tell(ctx context.Context, command string) error {
	return v.currentMonitor().Execute(ctx, command, nil, nil)
}
