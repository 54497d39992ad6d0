package firecracker

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

// vm is a running Firecracker.
type vm struct {
	*vmm.Machine
	cfg     hypervisor.Config
	can     abilities
	slots   *vmm.Slots
	metrics *metrics
	memory  *os.File // what guest and host have in common, or nil
	pipe    *transport.Client
	running bool // set before Start has returned: the guest has begun

	mu     sync.Mutex
	api    *vmm.API // nil before it is connected to
	drives *drives
}

// It is no hypervisor.Pauser: Firecracker 1.16 stops serving a guest's vsock when it resumes it, until the guest answers
// what it was never sent.
// Nor does it add processors: Firecracker cannot.
var (
	_ hypervisor.DiskPlugger   = (*vm)(nil)
	_ hypervisor.MemoryResizer = (*vm)(nil)
	_ hypervisor.Meter         = (*vm)(nil)
	_ hypervisor.MemorySharer  = (*vm)(nil)
)

// newVM watches over a Firecracker that was just started, and owns it and the starter's ends of its pipes.
func newVM(cfg hypervisor.Config, proc *vmm.Process, s *starter) *vm {
	v := &vm{cfg: cfg, can: s.can, memory: s.Memory, slots: vmm.NewSlots(maxDisks(len(cfg.NICs), cfg.Reclaim)), drives: newDrives(maxDisks(len(cfg.NICs), cfg.Reclaim))}
	v.metrics = newMetrics(v.flushMetrics)
	// Both end when nobody can write any more.
	var readers sync.WaitGroup
	readers.Go(func() { io.Copy(proc.Stderr(), s.log.reader) })
	readers.Go(func() { v.metrics.read(s.metrics.reader) })
	if n := s.can.placeholders(cfg); n > 0 {
		v.drives = newPlaceholders(n)
	}
	socket := transport.Hybrid{Path: filepath.Join(cfg.RunDir, vsockSocket)}
	v.pipe = transport.NewClient(socket.Pipe())
	v.Machine = vmm.Watch(proc, s.Console, cfg.Console, socket.Beside(v.pipe), func(m *vmm.Machine) error {
		v.pipe.Close()
		s.log.writer.Close()
		s.metrics.writer.Close()
		readers.Wait()
		s.log.reader.Close()
		s.metrics.reader.Close()
		if api := v.control(); api != nil {
			api.Close()
		}
		v.metrics.Close()
		if v.memory != nil {
			v.memory.Close()
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

// CommonMemory is what guest and host have in common, where this version can do that.
func (v *vm) CommonMemory() *os.File { return v.memory }

func (v *vm) control() *vmm.API {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.api
}

// do has Firecracker do something; what it refuses is FailedPrecondition, what its end has cut off Unavailable.
func (v *vm) do(ctx context.Context, method, path string, body any) ([]byte, error) {
	return v.control().Do(ctx, method, path, body)
}

// Counters are what Firecracker counts of itself.
func (v *vm) Counters(ctx context.Context) ([]hypervisor.Counter, error) {
	return v.metrics.Counters(ctx)
}

// flushMetrics returns when Firecracker has written what it counted.
func (v *vm) flushMetrics(ctx context.Context) error {
	_, err := v.do(ctx, "PUT", "/actions", map[string]string{"action_type": "FlushMetrics"})
	return err
}
