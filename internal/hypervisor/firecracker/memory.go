package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
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
	if !v.can.memory && bytes > v.cfg.Memory {
		return 0, fmt.Errorf("Firecracker %s adds no memory, 1.14 or later does: %w", v.can.version, errdefs.ErrFailedPrecondition)
	}
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
	if _, err := v.do(request, "PATCH", memoryPath, memoryRequest{MiB: added >> 20}); err != nil {
		return now, err
	}
	return v.AwaitAdded(ctx, added, v.addedMemory)
}

// addedMemory is what the guest has taken.
func (v *vm) addedMemory(ctx context.Context) (uint64, error) {
	answer, err := v.do(ctx, "GET", memoryPath, nil)
	if err != nil {
		return 0, err
	}
	var status memoryStatus
	if err := json.Unmarshal(answer, &status); err != nil {
		return 0, fmt.Errorf("status of the memory: %w: %w", err, errdefs.ErrInternal)
	}
	return status.PluggedMiB << 20, nil
}
