package vm

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/hypervisor"
)

// resizeTimeout bounds one change of a size: the guest takes and gives back memory in its own time.
const resizeTimeout = time.Minute

// Size is what a guest has.
type Size struct {
	VCPUs  int
	Memory uint64 // bytes
}

// sizing is the VM's size while it runs.
type sizing struct {
	driver string
	cfg    hypervisor.Config
	turn   chan struct{} // holds a token for whoever may change the size
	now    Size          // guarded by the VM's mu
}

func newSizing(driver string, cfg hypervisor.Config) sizing {
	s := sizing{driver: driver, cfg: cfg, turn: make(chan struct{}, 1), now: Size{cfg.VCPUs, cfg.Memory}}
	s.turn <- struct{}{}
	return s
}

// Size is what the guest has now.
func (v *VM) Size() Size {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.sizing.now
}

// Bounds are what the guest was started with, below which it never falls, and what it can have.
func (v *VM) Bounds() (least, most Size) {
	cfg := v.sizing.cfg
	return Size{cfg.VCPUs, cfg.Memory}, Size{max(cfg.VCPUs, cfg.MaxVCPUs), cfg.Memory + cfg.Growth()}
}

// Resize changes the size to what want makes of the present one. Memory is added in steps. A guest that does not follow is
// FailedPrecondition, with amounts, and gets back what it had.
func (v *VM) Resize(ctx context.Context, want func(now Size) Size) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, resizeTimeout, fmt.Errorf("it does not follow within %s: %w", resizeTimeout, errdefs.ErrFailedPrecondition))
	defer cancel()
	select {
	case <-v.sizing.turn:
		defer func() { v.sizing.turn <- struct{}{} }()
	case <-ctx.Done():
		return fmt.Errorf("resize VM %s: another change: %w", v.id, context.Cause(ctx))
	}
	old := v.Size()
	to := v.whole(want(old), old)
	if err := v.checkSize(to, old); err != nil {
		return fmt.Errorf("resize VM %s: %w", v.id, err)
	}
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	if to.VCPUs != old.VCPUs {
		undo.Add("restore processors", func(ctx context.Context) error { return v.setVCPUs(ctx, old.VCPUs) })
		if err := v.setVCPUs(ctx, to.VCPUs); err != nil {
			return fmt.Errorf("resize VM %s: %w", v.id, err)
		}
	}
	if to.Memory != old.Memory {
		undo.Add("restore memory", func(ctx context.Context) error { return v.setMemory(ctx, old.Memory) })
		if err := v.setMemory(ctx, to.Memory); err != nil {
			return fmt.Errorf("resize VM %s: %w", v.id, err)
		}
	}
	return nil
}

// whole is a size with memory in steps, as it is added. What is less than a step too much stays: a guest may be unable to give
// it back.
func (v *VM) whole(to, now Size) Size {
	const step = hypervisor.MemoryStep
	start := v.sizing.cfg.Memory
	if to.Memory > start {
		to.Memory = start + (to.Memory-start+step-1)/step*step
	}
	if to.Memory < now.Memory && now.Memory-to.Memory < step {
		to.Memory = now.Memory
	}
	return to
}

// checkSize says why a size cannot be, before anything is done.
func (v *VM) checkSize(to, now Size) error {
	least, most := v.Bounds()
	_, memory := v.machine.(hypervisor.MemoryResizer)
	_, vcpus := v.machine.(hypervisor.VCPUResizer)
	switch {
	case to.VCPUs < least.VCPUs || to.Memory < least.Memory:
		return fmt.Errorf("it was started with %d processors and %d MiB, and cannot have less: %w", least.VCPUs, least.Memory>>20, errdefs.ErrInvalidArgument)
	case to.VCPUs > now.VCPUs && !vcpus:
		return fmt.Errorf("hypervisor %s adds no processors to a VM that runs: make the pod anew with larger limits: %w", v.sizing.driver, errdefs.ErrFailedPrecondition)
	case to.Memory > now.Memory && !memory:
		return fmt.Errorf("hypervisor %s adds no memory to a VM that runs: make the pod anew with larger limits: %w", v.sizing.driver, errdefs.ErrFailedPrecondition)
	case to.VCPUs != now.VCPUs && !v.agent.Has(agentv1.FeatureResize):
		return fmt.Errorf("the agent in the guest is too old for processors that come or go: build the guest again, and make the pod anew: %w", errdefs.ErrFailedPrecondition)
	case to.VCPUs > most.VCPUs:
		return fmt.Errorf("%d processors: it can have %d at most (vm.max_vcpus): %w", to.VCPUs, most.VCPUs, errdefs.ErrResourceExhausted)
	case to.Memory > most.Memory:
		return fmt.Errorf("%d MiB of memory: it can have %d MiB at most (vm.max_memory_mib): %w", to.Memory>>20, most.Memory>>20, errdefs.ErrResourceExhausted)
	}
	return nil
}

// setVCPUs plugs processors before the guest uses them, and has it stop using them before they are unplugged: also those that it
// never used, when a change is undone.
func (v *VM) setVCPUs(ctx context.Context, n int) error {
	resizer, ok := v.machine.(hypervisor.VCPUResizer)
	if !ok {
		return fmt.Errorf("hypervisor %s: %w", v.sizing.driver, errdefs.ErrNotImplemented)
	}
	grows := n > v.Size().VCPUs
	if grows {
		if _, err := resizer.ResizeVCPUs(ctx, n); err != nil {
			return err
		}
	}
	used, _, err := v.agent.Resize(ctx, n)
	if errdefs.IsDeadlineExceeded(err) {
		// Not the caller's time is over, but the guest's.
		return fmt.Errorf("the guest does not bring %d processors into use: %v: %w", n, err, errdefs.ErrFailedPrecondition)
	} else if err != nil {
		return err
	}
	v.mu.Lock()
	v.sizing.now.VCPUs = used
	v.mu.Unlock()
	if used != n {
		return fmt.Errorf("the guest uses %d processors of %d: %w", used, n, errdefs.ErrFailedPrecondition)
	}
	if !grows {
		_, err = resizer.ResizeVCPUs(ctx, n)
	}
	return err
}

// setMemory also takes it for done when the guest keeps less than a step of what it was to give back: some of its kernel's
// pages cannot be moved.
func (v *VM) setMemory(ctx context.Context, bytes uint64) error {
	resizer, ok := v.machine.(hypervisor.MemoryResizer)
	if !ok {
		return fmt.Errorf("hypervisor %s: %w", v.sizing.driver, errdefs.ErrNotImplemented)
	}
	now, err := resizer.ResizeMemory(ctx, bytes)
	v.mu.Lock()
	shrinks := bytes < v.sizing.now.Memory
	if now > 0 {
		v.sizing.now.Memory = now
	}
	v.mu.Unlock()
	if shrinks && now > 0 && now < bytes+hypervisor.MemoryStep && ctx.Err() != nil {
		return nil
	}
	return err
}
