package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/vm"
)

// takeLimits notes the limits of a new container and makes them the guest's.
func (s *Service) takeLimits(v *vm.VM, id string, linux *specs.Linux) (err error) {
	if linux == nil {
		linux = &specs.Linux{}
	}
	if linux.Resources, err = s.limits.Add(id, linux.Resources); err != nil {
		return err
	}
	return s.applyLimits(v)
}

// dropLimits forgets those of a container that is gone.
func (s *Service) dropLimits(v *vm.VM, id string) error {
	s.limits.Remove(id)
	return s.applyLimits(v)
}

func (s *Service) applyLimits(v *vm.VM) error {
	select {
	case <-v.Done():
		return nil // its pid may be another process's
	default:
		return s.limits.Apply(v.PID())
	}
}

// Update changes the limits of a container. A VM without room for them grows first; one that has too much then, shrinks.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) error {
	_, v, err := s.use(r.ID)
	if err != nil {
		return err
	}
	var host specs.LinuxResources
	if err := json.Unmarshal(r.Resources.GetValue(), &host); err != nil {
		return fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	resources, err := s.options.GuestResources(&host)
	if err != nil {
		return err
	}
	return s.limits.InTurn(ctx, func() error { return s.changeLimits(ctx, v, r.ID, resources) })
}

func (s *Service) changeLimits(ctx context.Context, v *vm.VM, id string, resources *specs.LinuxResources) (err error) {
	change, err := s.limits.Change(id, resources)
	if err != nil {
		return err
	}
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	undo.Add("restore limits", func(ctx context.Context) error {
		change.Undo()
		return errors.Join(s.applyLimits(v), s.shrink(ctx, v))
	})
	if err := s.makeRoom(ctx, v, change.Grows); err != nil {
		return err
	}
	if err := s.applyLimits(v); err != nil {
		return err
	}
	if err := updateInGuest(ctx, v, id, change.Guest); err != nil {
		return err
	}
	if change.Shrinks {
		undo.Add("restore limits in guest", func(ctx context.Context) error { return updateInGuest(ctx, v, id, change.Restore) })
		if err := s.shrink(ctx, v); err != nil {
			return err
		}
	}
	s.renewSets(ctx, v)
	return nil
}

func updateInGuest(ctx context.Context, v *vm.VM, id string, resources *specs.LinuxResources) error {
	data, err := json.Marshal(resources)
	if err != nil {
		return err
	}
	return v.Agent().Update(ctx, id, data)
}
