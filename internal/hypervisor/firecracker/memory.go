package firecracker

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
)

// ResizeMemory has the guest take or give back memory, and waits until it has done so.
func (v *vm) ResizeMemory(ctx context.Context, bytes uint64) (uint64, error) {
	if !v.can.memory && bytes > v.cfg.Memory {
		return v.cfg.Memory, fmt.Errorf("resize memory: Firecracker %s adds no memory, 1.14 or later does: %w", v.can.version, errdefs.ErrFailedPrecondition)
	}
	return v.Machine.ResizeMemory(ctx, v.cfg.Size, bytes, memoryDevice{v})
}

// memoryDevice is the one that memory is added by.
type memoryDevice struct{ v *vm }

func (d memoryDevice) Request(ctx context.Context, added uint64) error {
	_, err := d.v.do(ctx, "PATCH", memoryPath, memoryRequest{MiB: added >> 20})
	return err
}

func (d memoryDevice) Added(ctx context.Context) (uint64, error) {
	answer, err := d.v.do(ctx, "GET", memoryPath, nil)
	if err != nil {
		return 0, err
	}
	var status memoryStatus
	if err := json.Unmarshal(answer, &status); err != nil {
		return 0, fmt.Errorf("status of the memory: %w: %w", err, errdefs.ErrInternal)
	}
	return status.PluggedMiB << 20, nil
}
