package shim

import (
	"context"
	"fmt"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/shim/limits"
	"github.com/pistis-run/pistis/internal/vm"
)

// Resize gives the VM what is asked for, or takes it, as far as its containers' limits allow.
func (x extras) Resize(ctx context.Context, r *shimv1.ResizeRequest) (*shimv1.Empty, error) {
	v, err := x.s.machine()
	if err != nil {
		return nil, err
	}
	asked := vm.Size{VCPUs: int(r.Vcpus), Memory: r.MemoryBytes}
	return &shimv1.Empty{}, x.s.limits.InTurn(ctx, func() error { return x.s.resize(ctx, v, asked) })
}

func (s *Service) resize(ctx context.Context, v *vm.VM, asked vm.Size) error {
	old := s.wanted
	s.wanted = asked
	err := v.Resize(ctx, func(vm.Size) vm.Size { return s.target(v) })
	if err != nil {
		s.wanted = old
		return err
	}
	s.renewSets(ctx, v)
	return nil
}

// renewSets gives containers that are confined to processors those that the VM has for them now. One that keeps its old ones gets
// less than it could have, and is asked again after the next change.
func (s *Service) renewSets(ctx context.Context, v *vm.VM) {
	for id, r := range s.limits.Outgrown() {
		c, err := s.container(id)
		if err != nil || c.check(opUse) != nil {
			continue // it has ended
		}
		if err := updateInGuest(ctx, v, id, r); err != nil {
			s.options.Log.Warn("a container keeps the processors that it had before its virtual machine was resized", logfields.Container, id, logfields.Error, err)
			continue
		}
		s.limits.Given(id, r.CPU.Cpus)
	}
}

// target is what the VM is to have: what its maker wants, and no less than its containers' limits and what it was started
// with.
func (s *Service) target(v *vm.VM) vm.Size {
	least, most := v.Bounds()
	// Limits may be wider than the VM from the beginning, as they may be wider than a host.
	needed := s.needed(s.limits.Sum())
	return vm.Size{
		VCPUs:  max(least.VCPUs, s.wanted.VCPUs, s.limits.Confined(), min(needed.VCPUs, v.Size().VCPUs, most.VCPUs)),
		Memory: max(least.Memory, s.wanted.Memory, min(needed.Memory, v.Size().Memory, most.Memory)),
	}
}

// needed is the size for containers with such limits, beside which there is memory for those without.
func (s *Service) needed(sum limits.Sum) vm.Size {
	base := max(s.asked.Options.GetVm().GetBaseMemoryBytes(), s.ownMemory())
	return vm.Size{VCPUs: int((sum.MilliCPU + 999) / 1000), Memory: base + uint64(sum.Memory)}
}

// ownMemory is what the guest needs for itself at least.
func (s *Service) ownMemory() uint64 { return s.asked.Driver.Capabilities().MinMemory }

// makeRoom lets the VM grow where limits that grow do not fit into it.
func (s *Service) makeRoom(ctx context.Context, v *vm.VM, grows limits.Sum) error {
	err := v.Resize(ctx, func(now vm.Size) vm.Size {
		to := s.needed(grows)
		if uint64(grows.Memory)+s.ownMemory() <= now.Memory {
			to.Memory = now.Memory
		}
		return vm.Size{VCPUs: max(now.VCPUs, to.VCPUs), Memory: to.Memory}
	})
	if err != nil {
		now, sum := v.Size(), s.limits.Sum()
		return fmt.Errorf("the limits of the pod's containers would be %d.%03d processors and %d MiB together, and its virtual machine has %d and %d MiB for them: %w",
			sum.MilliCPU/1000, sum.MilliCPU%1000, sum.Memory>>20, now.VCPUs, (now.Memory-min(now.Memory, s.ownMemory()))>>20, err)
	}
	return nil
}

// shrink takes what the VM has beyond its target.
func (s *Service) shrink(ctx context.Context, v *vm.VM) error {
	return v.Resize(ctx, func(now vm.Size) vm.Size {
		to := s.target(v)
		return vm.Size{VCPUs: min(now.VCPUs, to.VCPUs), Memory: min(now.Memory, to.Memory)}
	})
}
