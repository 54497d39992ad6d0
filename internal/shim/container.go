package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/shim/volumes"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/steps"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm"
)

// Create makes a container without starting it. On error nothing is left of it.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (_ *taskapi.CreateTaskResponse, err error) {
	if r.Checkpoint != "" || r.ParentCheckpoint != "" {
		return nil, fmt.Errorf("create container %s: from a checkpoint: not possible in a VM: %w", r.ID, errdefs.ErrNotImplemented)
	}
	if r.ID == "" {
		return nil, fmt.Errorf("create container: no id: %w", errdefs.ErrInvalidArgument)
	}
	v, err := s.machine()
	if err != nil {
		return nil, err
	}
	c, opts, err := s.reserve(r)
	if err != nil {
		return nil, err
	}
	defer close(c.made)
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	undo.Add("forget container", func(context.Context) error { s.forget(r.ID); return nil })
	if err := s.createInGuest(ctx, v, c, r, opts, &undo); err != nil {
		return nil, err
	}
	if err := failpoint.Hit(ctx, "shim.created"); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("create container %s: the caller has given up: %w", r.ID, err)
	}
	if err := c.step(opCreated); err != nil {
		return nil, err
	}
	undo.Release()
	s.watch(v, c.process)
	s.events.taskCreate(c, r)
	return &taskapi.CreateTaskResponse{Pid: c.pid}, nil
}

// reserve checks the request and claims the id.
func (s *Service) reserve(r *taskapi.CreateTaskRequest) (*container, *shimv1.CreateOptions, error) {
	opts, err := createOptions(r.Options)
	if err != nil {
		return nil, nil, err
	}
	layers, err := blockLayers(r.Rootfs)
	if err != nil {
		return nil, nil, err
	}
	c := &container{
		process: newProcess(task.ID{Container: r.ID}, r.Terminal, stdioPaths{r.Stdin, r.Stdout, r.Stderr}),
		bundle:  r.Bundle, disks: layers, stdinOnce: opts.StdinOnce, execs: map[string]*process{},
	}
	if c.paths.streamed() {
		return nil, nil, fmt.Errorf("stdio %s is for execs; a container's is attached at any time: %w", streamScheme, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[r.ID] != nil {
		return nil, nil, fmt.Errorf("there is a container with that id: %w", errdefs.ErrAlreadyExists)
	}
	s.containers[r.ID] = c
	return c, opts, nil
}

func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
}

func createOptions(any *anypb.Any) (*shimv1.CreateOptions, error) {
	var opts shimv1.CreateOptions
	if any == nil || any.TypeUrl == "" {
		return &opts, nil
	}
	if err := any.UnmarshalTo(&opts); err != nil {
		return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &opts, nil
}

// createInGuest gives the container its layers, log, guest process and streams; undo takes them away again.
func (s *Service) createInGuest(ctx context.Context, v *vm.VM, c *container, r *taskapi.CreateTaskRequest, opts *shimv1.CreateOptions, undo *cleanup.Stack) error {
	guest, devices, err := s.guestSpec(r)
	if err != nil {
		return err
	}
	for _, d := range devices {
		c.disks = append(c.disks, d.disk)
	}
	undo.Add("forget limits", func(context.Context) error { return s.dropLimits(v, r.ID) })
	if err := s.takeLimits(v, r.ID, guest.Linux); err != nil {
		return err
	}
	sharing, end := steps.Start(ctx, "shares")
	placed, err := volumes.Place(sharing, v, guest.Mounts, v.Agent().Has(agentv1.FeatureShareParts))
	if err != nil {
		return err
	}
	end()
	c.shares = placed.Shares
	undo.Add("release shares", func(ctx context.Context) error { return v.ReleaseShares(ctx, c.shares) })
	spec, err := json.Marshal(guest)
	if err != nil {
		return err
	}
	if opts.LogPath != "" {
		if c.log, err = stdio.OpenLog(opts.LogPath); err != nil {
			return err
		}
		undo.Add("close log", func(context.Context) error { return c.log.Close() })
	}
	plugging, end := steps.Start(ctx, "plug layers")
	addresses, err := v.AttachDisks(plugging, c.disks)
	if err != nil {
		return err
	}
	end()
	var free []*agentv1.DiskAddress
	undo.Add("release disks", func(ctx context.Context) error { return v.ReleaseDisks(ctx, c.disks, free) })
	// Also when no answer came, and also when the guest made it before it failed.
	undo.Add("delete container in guest", func(ctx context.Context) (err error) {
		free, err = deleteInGuest(ctx, v, c.id)
		return err
	})
	stdin := opts.Stdin || r.Stdin != ""
	pid, user, err := v.Agent().CreateContainer(context.WithoutCancel(ctx), &agentv1.CreateContainerRequest{
		Id: r.ID, Spec: spec, Layers: addresses[:len(addresses)-len(devices)], User: guestUser(opts.User), Stdin: stdin, PidNamespace: guestPID(opts.PidNamespace),
		Memory: placed.Memory, ShareParts: placed.Parts, Devices: wireDevices(devices, addresses[len(addresses)-len(devices):]),
	})
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.process.pid, c.process.user = pid, user
	c.mu.Unlock()
	opening, end := steps.Start(ctx, "open streams")
	defer end()
	c.io, err = openIO(opening, v.Agent(), c.id, c.terminal, stdin, c.paths, c.log, s.running.Go)
	if err != nil {
		return err
	}
	undo.Add("close stdio", func(context.Context) error { c.io.close(); return nil })
	return nil
}

// guestSpec also returns the block devices, which are no part of the guest's spec.
func (s *Service) guestSpec(r *taskapi.CreateTaskRequest) (*specs.Spec, []blockDevice, error) {
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, nil, err
	}
	if spec.Process.Terminal != r.Terminal {
		return nil, nil, fmt.Errorf("the spec's terminal is %t, the request's %t: %w", spec.Process.Terminal, r.Terminal, errdefs.ErrInvalidArgument)
	}
	devices, err := takeBlockDevices(spec.Linux)
	if err != nil {
		return nil, nil, err
	}
	guest, err := s.options.GuestSpec(spec)
	return guest, devices, err
}

func guestUser(u *shimv1.UserRequest) *agentv1.User {
	if u == nil {
		return nil
	}
	return &agentv1.User{User: u.User, Gid: u.Gid, SupplementalGroups: u.SupplementalGroups, Strict: u.Strict}
}

func guestPID(n *shimv1.PIDNamespace) *agentv1.PIDNamespace {
	switch of := n.GetOf().(type) {
	case *shimv1.PIDNamespace_Own:
		return &agentv1.PIDNamespace{Of: &agentv1.PIDNamespace_Own{Own: true}}
	case *shimv1.PIDNamespace_Container:
		return &agentv1.PIDNamespace{Of: &agentv1.PIDNamespace_Container{Container: of.Container}}
	}
	return nil
}

// watch waits for the end of a process, from before its start.
func (s *Service) watch(v *vm.VM, p *process) {
	ctx, cancel := context.WithCancel(context.Background())
	p.mu.Lock()
	p.forget = cancel
	p.mu.Unlock()
	s.running.Go(func() {
		defer cancel()
		exit, err := v.Agent().Wait(ctx, p.id)
		if err != nil {
			if exit, err = s.lostExit(ctx, v, err); err != nil {
				return // deleted before it was started
			}
		}
		p.io.drain(v.Done())
		select {
		case <-p.settled:
		case <-v.Done():
		case <-ctx.Done():
			return
		}
		if p.finish(exit) {
			s.events.taskExit(p)
		}
	})
}

// lostExit is the exit of a process whose end the agent did not tell. The error is that of ctx.
func (s *Service) lostExit(ctx context.Context, v *vm.VM, lost error) (task.Exit, error) {
	if ctx.Err() != nil {
		return task.Exit{}, ctx.Err()
	}
	if errdefs.IsUnavailable(lost) {
		// The connection is lost, and so the VM is about to end; or the guest only says so.
		select {
		case <-v.Done():
		case <-ctx.Done():
			return task.Exit{}, ctx.Err()
		}
	}
	select {
	case <-v.Done():
		return s.vmExit(v), nil
	default:
		return task.Exit{Code: exitUnknown, At: time.Now(), Reason: lost.Error()}, nil
	}
}

// Exec makes a further process in a container.
func (s *Service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (err error) {
	c, err := s.container(r.ID)
	if err != nil {
		return err
	}
	if r.ExecID == "" {
		return fmt.Errorf("exec in container %s: no exec id: %w", r.ID, errdefs.ErrInvalidArgument)
	}
	if err := c.check(opUse); err != nil {
		return fmt.Errorf("exec %s: %w", r.ExecID, err)
	}
	v, err := s.machine()
	if err != nil {
		return err
	}
	process, err := guestProcess(r.Spec.GetValue())
	if err != nil {
		return fmt.Errorf("exec %s: %w", r.ExecID, err)
	}
	process.Terminal = r.Terminal
	p := newProcess(task.ID{Container: r.ID, Exec: r.ExecID}, r.Terminal, stdioPaths{r.Stdin, r.Stdout, r.Stderr})
	if err := c.addExec(p); err != nil {
		return err
	}
	defer close(p.made)
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	undo.Add("forget exec", func(context.Context) error { c.removeExec(r.ExecID); return nil })
	if err := s.execInGuest(ctx, v, p, process, &undo); err != nil {
		return err
	}
	undo.Add("close stdio", func(context.Context) error { p.io.close(); return nil })
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("exec %s: the caller has given up: %w", r.ExecID, err)
	}
	if err := p.step(opCreated); err != nil {
		return err
	}
	undo.Release()
	s.watch(v, p)
	s.events.execAdded(p)
	return nil
}

func (s *Service) execInGuest(ctx context.Context, v *vm.VM, p *process, process *execProcess, undo *cleanup.Stack) error {
	data, err := json.Marshal(process)
	if err != nil {
		return err
	}
	undo.Add("delete exec in guest", func(ctx context.Context) error {
		_, err := deleteInGuest(ctx, v, p.id)
		return err
	})
	stdin := p.paths.in != ""
	err = v.Agent().Exec(context.WithoutCancel(ctx), &agentv1.ExecRequest{Container: p.id.Container, Id: p.id.Exec, Process: data, Stdin: stdin})
	if err != nil {
		return err
	}
	opening, end := steps.Start(ctx, "open streams")
	defer end()
	p.io, err = openIO(opening, v.Agent(), p.id, p.terminal, stdin, p.paths, nil, s.running.Go)
	return err
}

// Delete forgets a process that has ended or was never started, or is being created: then it waits for the end of that
// and answers NotFound. In a VM that has gone there is nothing to undo but
// what the host has.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if abandoned, err := p.abandon(ctx); err != nil {
		return nil, err
	} else if abandoned {
		return nil, fmt.Errorf("%s: it was not created: %w", p.name(), errdefs.ErrNotFound)
	}
	if err := p.step(opDelete); err != nil {
		return nil, err
	}
	if err := s.deleteProcess(context.WithoutCancel(ctx), c, p); err != nil {
		p.step(opRestore)
		return nil, err
	}
	p.discard()
	if r.ExecID != "" {
		c.removeExec(r.ExecID)
	} else {
		c.discardExecs()
		s.forget(r.ID)
		s.closeLog(c)
	}
	_, pid, exit := p.snapshot()
	s.events.taskDelete(p)
	return &taskapi.DeleteResponse{Pid: pid, ExitStatus: exit.Code, ExitedAt: timestamp(exit.At)}, nil
}

// deleteInGuest is nil for what the guest does not know, and when the guest itself has gone. A disk list comes only
// with what was there.
func deleteInGuest(ctx context.Context, v *vm.VM, id task.ID) ([]*agentv1.DiskAddress, error) {
	free, err := v.Agent().Delete(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		return free, nil
	}
	select {
	case <-v.Done():
		return nil, nil
	default:
		return nil, err
	}
}

func (s *Service) deleteProcess(ctx context.Context, c *container, p *process) error {
	v, err := s.machine()
	if err != nil {
		return nil // the guest has gone with all that was in it
	}
	free, err := deleteInGuest(ctx, v, p.id)
	if err != nil {
		return err
	}
	if p != c.process {
		return nil
	}
	// The container is gone for good; what stays attached is the VM's affair.
	if err := v.ReleaseDisks(ctx, c.disks, free); err != nil {
		s.options.Log.Warn("disks stay attached", logfields.Container, p.id.Container, logfields.Error, err)
	}
	if err := s.dropLimits(v, p.id.Container); err != nil {
		s.options.Log.Warn("the virtual machine stays confined to processors of a container that is gone", logfields.Container, p.id.Container, logfields.Error, err)
	}
	if err := v.ReleaseShares(ctx, c.shares); err != nil {
		s.options.Log.Warn("shares did not end well", logfields.Container, p.id.Container, logfields.Error, err)
	}
	return nil
}

func (s *Service) closeLog(c *container) {
	if c.log == nil {
		return
	}
	if err := c.log.Close(); err != nil {
		s.options.Log.Warn("container log is not complete", logfields.Container, c.id.Container, logfields.Error, err)
	}
}
