package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// growInterval is the pause between two questions to a VMM that does not tell when its guest has taken memory or given it
// back.
const growInterval = 20 * time.Millisecond

// NoBounceBuffers tells the guest's kernel not to set memory aside for devices that cannot reach what lies above 4 GiB, where
// its machine may have memory: virtio can.
const NoBounceBuffers = "swiotlb=noforce"

// GrowthParams tell the guest's kernel to use memory that is added, most of it in a way that lets it go again.
func GrowthParams(cfg hypervisor.Config) []string {
	if cfg.Growth() == 0 {
		return nil
	}
	return []string{"memhp_default_state=online", "memory_hotplug.online_policy=auto-movable", NoBounceBuffers}
}

// Unbroken is for a request that must not be cut off when ctx ends, since the connection would end with it: it has a time of its
// own.
func Unbroken(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), hypervisor.ControlTimeout)
}

// memoryControl is how a VMM is asked about the memory that its guest has beside what it was started with.
type memoryControl interface {
	// Added tells how much the guest has taken.
	Added(ctx context.Context) (uint64, error)
	// Request has the guest take so much in all.
	Request(ctx context.Context, added uint64) error
}

// ResizeMemory has the guest take or give back memory, and waits until it has done so, one caller after the other. It does what
// hypervisor.MemoryResizer says.
func (m *Machine) ResizeMemory(ctx context.Context, size hypervisor.Size, bytes uint64, control memoryControl) (uint64, error) {
	m.resizing.Lock()
	defer m.resizing.Unlock()
	now, err := m.resizeMemory(ctx, size, bytes, control)
	if err != nil {
		err = fmt.Errorf("resize memory: %w", err)
	}
	return now, err
}

func (m *Machine) resizeMemory(ctx context.Context, size hypervisor.Size, bytes uint64, control memoryControl) (uint64, error) {
	added, err := size.Added(bytes)
	if size.Growth() == 0 {
		return size.Memory, err
	}
	request, done := Unbroken(ctx)
	defer done()
	now, askErr := control.Added(request)
	if askErr != nil {
		return 0, errors.Join(err, askErr)
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = control.Request(request, added)
	}
	if err == nil {
		now, err = m.awaitAdded(ctx, now, added, control.Added)
	}
	return size.Memory + now, err
}

// awaitAdded asks, until ctx or the VM ends, how much memory the guest has taken of what can be added, and returns the last
// answer.
func (m *Machine) awaitAdded(ctx context.Context, now, want uint64, ask func(context.Context) (uint64, error)) (uint64, error) {
	tick := time.NewTicker(growInterval)
	defer tick.Stop()
	for {
		request, done := Unbroken(ctx)
		answer, err := ask(request)
		done()
		if err != nil {
			return now, err
		}
		if now = answer; now == want {
			return now, nil
		}
		select {
		case <-tick.C:
		case <-m.Done():
			return now, m.Ended()
		case <-ctx.Done():
			return now, NotAdded(ctx, now, want)
		}
	}
}

// NotAdded says what a guest has when the time is over.
func NotAdded(ctx context.Context, now, want uint64) error {
	return fmt.Errorf("the guest uses %d MiB of added memory, and %d are asked of it: %w", now>>20, want>>20, context.Cause(ctx))
}
