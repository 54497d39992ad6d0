package cloudhypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

const (
	// ejecting is its status while the guest has not let go of a processor that was taken away.
	ejecting = 429
	// ejectInterval is the pause between two attempts then: it gives no event for that.
	ejectInterval = 20 * time.Millisecond
)

// ResizeMemory has the guest take or give back memory, and waits until it has done so.
func (v *vm) ResizeMemory(ctx context.Context, bytes uint64) (uint64, error) {
	v.resizing.Lock()
	defer v.resizing.Unlock()
	now, err := v.resizeMemory(ctx, bytes)
	if err != nil {
		err = fmt.Errorf("resize memory: %w", err)
	}
	return v.cfg.Memory + now, err
}

func (v *vm) resizeMemory(ctx context.Context, bytes uint64) (uint64, error) {
	added, err := v.cfg.Added(bytes)
	if v.cfg.Growth() == 0 {
		return 0, err
	}
	request, done := vmm.Unbroken(ctx)
	defer done()
	now, askErr := v.addedMemory(request)
	if err != nil || askErr != nil {
		return now, errors.Join(err, askErr)
	}
	if ctx.Err() != nil {
		return now, context.Cause(ctx)
	}
	if added != v.asked { // it refuses to be asked again for the same
		if err := v.do(request, "vm.resize", resize{RAM: v.cfg.Memory + added}); err != nil {
			return now, err
		}
		v.asked = added
	}
	return v.AwaitAdded(ctx, added, v.addedMemory)
}

// addedMemory is what the guest has taken.
func (v *vm) addedMemory(ctx context.Context) (uint64, error) {
	answer, err := v.api.Do(ctx, "GET", apiPrefix+"vm.info", nil)
	if err != nil {
		return 0, err
	}
	var info vmInfo
	if err := json.Unmarshal(answer, &info); err != nil {
		return 0, fmt.Errorf("what it says of the VM: %w: %w", err, errdefs.ErrInternal)
	}
	return info.Memory - min(info.Memory, v.cfg.Memory), nil
}

// ResizeVCPUs plugs or unplugs processors.
func (v *vm) ResizeVCPUs(ctx context.Context, n int) (int, error) {
	v.resizing.Lock()
	defer v.resizing.Unlock()
	err := v.resizeVCPUs(ctx, n)
	if err != nil {
		return v.vcpus, fmt.Errorf("resize processors: %w", err)
	}
	v.vcpus = n
	return n, nil
}

func (v *vm) resizeVCPUs(ctx context.Context, n int) error {
	if err := v.cfg.CheckVCPUs(n); err != nil {
		return err
	}
	tick := time.NewTicker(ejectInterval)
	defer tick.Stop()
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		request, done := vmm.Unbroken(ctx)
		err := v.do(request, "vm.resize", resize{VCPUs: n})
		done()
		var refused *vmm.APIError
		if !errors.As(err, &refused) || refused.Status != ejecting {
			return err
		}
		select {
		case <-tick.C:
		case <-v.Done():
			return v.Ended()
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}
