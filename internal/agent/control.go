package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/cgroup"
	"github.com/pistis-run/pistis/internal/logfields"
)

// maxSignal is the highest real-time signal.
const maxSignal = 64

// Signal implements agentv1.AgentService.
func (a *Agent) Signal(_ context.Context, req *agentv1.SignalRequest) (*agentv1.Empty, error) {
	c, p, err := a.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	sig := unix.Signal(req.Signal)
	switch {
	case req.Signal < 1 || req.Signal > maxSignal:
		return nil, invalid("signal %d: there are 1 to %d", req.Signal, maxSignal)
	case !req.All:
		err = p.signal(sig)
	case req.Exec != "":
		return nil, invalid("signal %s: all is for containers", p.name)
	case sig == unix.SIGKILL:
		err = c.group.Kill()
	default:
		err = c.group.Signal(sig)
	}
	if err != nil {
		return nil, fmt.Errorf("signal %d: %w", req.Signal, err)
	}
	return &agentv1.Empty{}, nil
}

// Wait implements agentv1.AgentService.
func (a *Agent) Wait(ctx context.Context, req *agentv1.WaitRequest) (*agentv1.WaitResponse, error) {
	_, p, err := a.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &agentv1.WaitResponse{
		Code: p.exit.code, ExitedAt: timestamppb.New(p.exit.at), OomKilled: p.exit.oomKilled, Reason: p.exit.reason,
	}, nil
}

// ResizeTerminal implements agentv1.AgentService.
func (a *Agent) ResizeTerminal(_ context.Context, req *agentv1.ResizeTerminalRequest) (*agentv1.Empty, error) {
	_, p, err := a.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	if req.Width > 1<<16-1 || req.Height > 1<<16-1 {
		return nil, invalid("resize %s: %d×%d is more than a terminal has", p.name, req.Width, req.Height)
	}
	if p.is(creating) {
		return nil, precondition("resize %s: it is %s", p.name, creating)
	}
	return &agentv1.Empty{}, p.stdio.Resize(uint16(req.Width), uint16(req.Height))
}

// Pids implements agentv1.AgentService.
func (a *Agent) Pids(_ context.Context, req *agentv1.PidsRequest) (*agentv1.PidsResponse, error) {
	c, err := a.container(req.Container)
	if err != nil {
		return nil, err
	}
	pids, err := c.group.Pids()
	if err != nil {
		return nil, fmt.Errorf("processes of %s: %w", c.id, err)
	}
	execs := map[uint32]string{}
	c.mu.Lock()
	for id, p := range c.execs {
		execs[p.pid()] = id
	}
	c.mu.Unlock()
	resp := &agentv1.PidsResponse{}
	for _, pid := range pids {
		resp.Pids = append(resp.Pids, &agentv1.Pid{Pid: uint32(pid), Exec: execs[uint32(pid)]})
	}
	return resp, nil
}

// Pause implements agentv1.AgentService.
func (a *Agent) Pause(ctx context.Context, req *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return a.whileRunning(req.Container, func(c *container) error { return a.Runtime.Pause(ctx, c.id) })
}

// Resume implements agentv1.AgentService.
func (a *Agent) Resume(ctx context.Context, req *agentv1.ContainerRequest) (*agentv1.Empty, error) {
	return a.whileRunning(req.Container, func(c *container) error { return a.Runtime.Resume(ctx, c.id) })
}

// Update implements agentv1.AgentService.
func (a *Agent) Update(ctx context.Context, req *agentv1.UpdateRequest) (*agentv1.Empty, error) {
	if len(req.Resources) > maxSpec {
		return nil, invalid("%d bytes of resources, at most %d are possible", len(req.Resources), maxSpec)
	}
	var resources specs.LinuxResources
	if err := json.Unmarshal(req.Resources, &resources); err != nil {
		return nil, invalid("resources: %w", err)
	}
	c, err := a.container(req.Container)
	if err != nil {
		return nil, err
	}
	if !c.init.is(created) && !c.init.is(running) {
		return nil, precondition("container %s is neither created nor running", c.id)
	}
	f, err := os.CreateTemp(c.bundle, "resources-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(req.Resources)
	f.Close()
	if err != nil {
		return nil, err
	}
	if err := a.Runtime.Update(ctx, c.id, filepath.Clean(f.Name())); err != nil {
		return nil, err
	}
	return &agentv1.Empty{}, nil
}

func (a *Agent) whileRunning(id string, do func(*container) error) (*agentv1.Empty, error) {
	c, err := a.container(id)
	if err != nil {
		return nil, err
	}
	if !c.init.is(running) {
		return nil, precondition("container %s is not running", c.id)
	}
	if err := do(c); err != nil {
		return nil, err
	}
	return &agentv1.Empty{}, nil
}

// shutdownTimeout bounds what Shutdown waits for.
const shutdownTimeout = 5 * time.Second

// Shutdown implements agentv1.AgentService. Serve returns after it.
func (a *Agent) Shutdown(ctx context.Context, _ *agentv1.Empty) (*agentv1.Empty, error) {
	a.halt.Do(func() {
		defer close(a.shutdown)
		a.stopAll(ctx)
	})
	return &agentv1.Empty{}, nil
}

// stopAll does its best: the guest ends in any case.
func (a *Agent) stopAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	if err := cgroup.Group(filepath.Join(cgroup.Root, cgroup.Parent)).Kill(); err != nil {
		a.Log.Warn("shutdown: kill", logfields.Error, err)
	}
	a.mu.Lock()
	var all []*process
	for _, c := range a.containers {
		all = append(all, c.processes()...)
	}
	a.mu.Unlock()
	for _, p := range all {
		if p.pid() == 0 {
			continue
		}
		select {
		case <-p.done:
		case <-ctx.Done():
		}
	}
	if err := a.Roots.Close(); err != nil {
		a.Log.Warn("shutdown", logfields.Error, err)
	}
}
