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
	return v.Machine.ResizeMemory(ctx, v.cfg.Size, bytes, &v.added)
}

// added is the memory that a guest has beside what it was started with.
type added struct {
	vm    *vm
	asked uint64 // as it was told last
}

func (a *added) Request(ctx context.Context, bytes uint64) error {
	if bytes == a.asked { // it refuses to be asked again for the same
		return nil
	}
	err := a.vm.do(ctx, "vm.resize", resize{RAM: a.vm.cfg.Memory + bytes})
	if err == nil {
		a.asked = bytes
	}
	return err
}

func (a *added) Added(ctx context.Context) (uint64, error) {
	answer, err := a.vm.api.Do(ctx, "GET", apiPrefix+"vm.info", nil)
	if err != nil {
		return 0, err
	}
	var info vmInfo
	if err := json.Unmarshal(answer, &info); err != nil {
		return 0, fmt.Errorf("what it says of the VM: %w: %w", err, errdefs.ErrInternal)
	}
	return info.Memory - min(info.Memory, a.vm.cfg.Memory), nil
}

// ResizeVCPUs plugs or unplugs processors.
func (v *vm) ResizeVCPUs(ctx context.Context, n int) (int, error) {
	v.resizing.Lock()
	defer v.resizing.Unlock()
	err := v.resizeVCPUs(ctx, n)
	if err != nil {
		err = fmt.Errorf("resize processors: %w", err)
	}
	return v.vcpus, err
}

// resizeVCPUs waits until the guest has let go of those that are taken away: Cloud Hypervisor has them until then, and takes a wish
// for so many as are there for fulfilled, though some are about to go.
func (v *vm) resizeVCPUs(ctx context.Context, n int) error {
	if err := v.cfg.CheckVCPUs(n); err != nil {
		return err
	}
	if v.leaving {
		if err := v.settleVCPUs(ctx); err != nil {
			return err
		}
	}
	if err := v.askVCPUs(ctx, n); err != nil {
		return err
	}
	v.leaving = n < v.vcpus
	v.vcpus = n
	if !v.leaving {
		return nil
	}
	return v.settleVCPUs(ctx)
}

// settleVCPUs waits until there are no more processors than there are to be.
func (v *vm) settleVCPUs(ctx context.Context) error {
	err := v.askVCPUs(ctx, v.vcpus)
	v.leaving = err != nil
	return err
}

// askVCPUs asks until it is not refused because of processors that are leaving.
func (v *vm) askVCPUs(ctx context.Context, n int) error {
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
			return fmt.Errorf("the guest has not let go of processors: %w", context.Cause(ctx))
		}
	}
}
