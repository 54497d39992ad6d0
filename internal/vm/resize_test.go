package vm

import (
	"context"
	"errors"
	"testing"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// silent is a machine whose VMM does not tell how much memory the guest has.
type silent struct{ hypervisor.VM }

func (silent) ResizeMemory(ctx context.Context, _ uint64) (uint64, error) {
	return 0, context.Cause(ctx)
}

// TestShrinkUnknown: that nobody knows what the guest has is not taken for memory that it gave back.
func TestShrinkUnknown(t *testing.T) {
	cfg := hypervisor.Config{Size: hypervisor.Size{VCPUs: 1, Memory: 256 << 20, MaxMemory: 1 << 30}}
	v := &VM{machine: silent{}, sizing: newSizing("fake", cfg)}
	v.sizing.now.Memory = 512 << 20
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.setMemory(ctx, 256<<20); !errors.Is(err, context.Canceled) || v.Size().Memory != 512<<20 {
		t.Errorf("%v; it has %d MiB", err, v.Size().Memory>>20)
	}
}
