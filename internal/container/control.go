package container

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/task"
)

// Update changes limits; what the new ones leave out stays as it is. For a container that has not been started or has
// ended the change is kept all the same.
func (m *Manager) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	rec := c.snapshot()
	pod, err := m.sandboxes.Status(ctx, rec.Config.SandboxID)
	if err != nil {
		return err
	}
	// Before the container is claimed: plugins may change others in return.
	if resources, err = m.plugins.Update(ctx, pod, rec.status(), resources); err != nil {
		return err
	}
	if err := m.SetLimits(ctx, rec.ID, resources); err != nil {
		return err
	}
	m.tell(ctx, MomentUpdated, c.snapshot())
	return nil
}

// SetLimits is Update without asking plugins.
func (m *Manager) SetLimits(ctx context.Context, id string, resources *specs.LinuxResources) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	// A virtual machine may have to grow for them.
	ctx, release, err := c.acquireYielding(ctx)
	if err != nil {
		return err
	}
	defer release()
	return m.updateLimits(ctx, c, resources)
}

// updateLimits writes the record before as well, as it is: where none can be written nothing is done. New limits are in it when they
// hold, so that those which a daemon did not come to are not told by the next.
func (m *Manager) updateLimits(ctx context.Context, c *container, resources *specs.LinuxResources) error {
	rec := c.snapshot()
	apply := func() error { return nil }
	if slices.Contains([]State{Created, Running}, rec.State) {
		pod, err := m.sandboxes.Status(ctx, rec.Config.SandboxID)
		if err != nil {
			return err
		}
		if pod.VM {
			if resources, err = oci.GuestResources(resources); err != nil {
				return err
			}
		}
		tasks, err := m.sandboxes.Tasks(ctx, rec.Config.SandboxID)
		if err != nil {
			return err
		}
		updater, ok := tasks.(task.Updater)
		if !ok {
			return fmt.Errorf("its runtime cannot change limits: %w", errdefs.ErrNotImplemented)
		}
		apply = func() error { return updater.Update(ctx, rec.ID, resources) }
	}
	if err := m.update(c, func(*record) {}); err != nil {
		return err
	}
	if err := apply(); err != nil {
		return err
	}
	m.note(c, func(r *record) { r.Config.Resources = mergeResources(r.Config.Resources, resources) })
	return nil
}

// mergeResources returns old with what is set in change. Both are left as they are.
func mergeResources(old, change *specs.LinuxResources) *specs.LinuxResources {
	if old == nil {
		return change
	}
	if change == nil {
		return old
	}
	merged := *old
	if change.CPU != nil {
		cpu := value(old.CPU)
		set(&cpu.Shares, change.CPU.Shares)
		set(&cpu.Quota, change.CPU.Quota)
		set(&cpu.Burst, change.CPU.Burst)
		set(&cpu.Period, change.CPU.Period)
		set(&cpu.Idle, change.CPU.Idle)
		if change.CPU.Cpus != "" {
			cpu.Cpus = change.CPU.Cpus
		}
		if change.CPU.Mems != "" {
			cpu.Mems = change.CPU.Mems
		}
		merged.CPU = &cpu
	}
	if change.Memory != nil {
		memory := value(old.Memory)
		set(&memory.Limit, change.Memory.Limit)
		set(&memory.Reservation, change.Memory.Reservation)
		set(&memory.Swap, change.Memory.Swap)
		merged.Memory = &memory
	}
	if change.Pids != nil {
		merged.Pids = change.Pids
	}
	if len(change.HugepageLimits) > 0 {
		merged.HugepageLimits = change.HugepageLimits
	}
	if len(change.Unified) > 0 {
		merged.Unified = maps.Clone(old.Unified)
		if merged.Unified == nil {
			merged.Unified = map[string]string{}
		}
		maps.Copy(merged.Unified, change.Unified)
	}
	return &merged
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func set[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}

// ReopenLog opens the log file of a running container anew, after it was rotated away.
func (m *Manager) ReopenLog(ctx context.Context, id string) error {
	rec, tasks, err := m.running(ctx, id, Running)
	if err != nil {
		return err
	}
	reopener, ok := tasks.(task.LogReopener)
	if !ok {
		return fmt.Errorf("its runtime writes no logs: %w", errdefs.ErrNotImplemented)
	}
	return reopener.ReopenLog(ctx, rec.ID)
}
