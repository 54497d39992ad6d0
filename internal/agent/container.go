package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/cgroup"
	"github.com/pistis-run/pistis/internal/agent/stdio"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/steps"
)

// undoTimeout bounds what a failed call does to leave nothing.
const undoTimeout = 30 * time.Second

// container and what Create made of it. Everything but execs is fixed once it is in state created.
type container struct {
	id     string
	bundle string
	root   string // the merged root file system
	group  cgroup.Group
	init   *process
	// process of the spec as it was started: what an exec does not say is taken from here.
	spec specs.Process
	// devices are disks that the container has as block devices.
	devices []*agentv1.DiskAddress

	mu    sync.Mutex
	execs map[string]*process
}

func (c *container) exec(id string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[id]
	if !ok {
		return nil, fmt.Errorf("exec %.200q in container %s: %w", id, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

// CreateContainer implements agentv1.AgentService.
func (a *Agent) CreateContainer(ctx context.Context, req *agentv1.CreateContainerRequest) (*agentv1.CreateContainerResponse, error) {
	if err := checkID("container", req.Id); err != nil {
		return nil, err
	}
	c := &container{
		id: req.Id, bundle: filepath.Join(a.Dir, "bundles", req.Id), group: cgroup.OfContainer(req.Id),
		init: newProcess(req.Id), execs: map[string]*process{},
	}
	placement, err := a.reserve(c)
	if err != nil {
		return nil, err
	}
	defer close(c.init.made)
	user, err := a.createIn(ctx, c, placement, req)
	if err != nil {
		a.forget(c)
		c.init.finish(exit{code: 255, at: time.Now(), reason: "not created"})
		return nil, err
	}
	c.init.settle(created)
	return &agentv1.CreateContainerResponse{Pid: c.init.pid(), User: user}, nil
}

// reserve puts a container into the table.
func (a *Agent) reserve(c *container) (placement, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.sandbox.ready:
		return placement{}, precondition("container %s: the sandbox is not configured", c.id)
	case a.containers[c.id] != nil:
		return placement{}, fmt.Errorf("container %s: %w", c.id, errdefs.ErrAlreadyExists)
	case len(a.containers) >= maxContainers:
		return placement{}, fmt.Errorf("container %s: the pod has %d containers: %w", c.id, maxContainers, errdefs.ErrResourceExhausted)
	}
	a.containers[c.id] = c
	return placement{id: c.id, mounts: a.sandbox.mounts}, nil
}

// createIn is create in the PID namespace that the request names.
func (a *Agent) createIn(ctx context.Context, c *container, place placement, req *agentv1.CreateContainerRequest) (*agentv1.ResolvedUser, error) {
	namespace, err := a.pidNamespace(req.PidNamespace)
	if err != nil {
		return nil, err
	}
	if namespace != nil {
		defer namespace.Close()
		place.pidNamespace = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), namespace.Fd())
	}
	return a.create(ctx, c, place, req)
}

// pidNamespace opens the namespace that a container joins; nil gives it one of its own. It is held open while the runtime
// enters it: a pid may be another process's by then.
func (a *Agent) pidNamespace(asked *agentv1.PIDNamespace) (*os.File, error) {
	switch of := asked.GetOf().(type) {
	case nil:
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.sandbox.pause == nil {
			return nil, nil
		}
		return os.Open(fmt.Sprintf("/proc/%d/ns/pid", a.sandbox.pause.PID()))
	case *agentv1.PIDNamespace_Own:
		return nil, nil
	case *agentv1.PIDNamespace_Container:
		target, err := a.container(of.Container)
		if err != nil {
			return nil, fmt.Errorf("PID namespace: %w", err)
		}
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/pid", target.init.pid()))
		if err != nil || !target.init.is(running) { // asked last: then the file is of its process
			file.Close()
			return nil, precondition("PID namespace: container %s does not run", target.id)
		}
		return file, nil
	}
	return nil, unsupported("PID namespace: of no kind that this agent knows")
}

func (a *Agent) forget(c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.containers, c.id)
}

// create makes everything of a container, and undoes it when a step fails.
func (a *Agent) create(ctx context.Context, c *container, place placement, req *agentv1.CreateContainerRequest) (_ *agentv1.ResolvedUser, err error) {
	spec, err := parseSpec(req.Spec)
	if err != nil {
		return nil, err
	}
	var undo []func(context.Context) error
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i](ctx))
		}
	}()
	mounting, end := steps.Start(ctx, "mount layers")
	root, err := a.Roots.Mount(mounting, c.id, req.Layers)
	if err != nil {
		return nil, err
	}
	end()
	undo = append(undo, func(context.Context) error { _, err := a.Roots.Unmount(c.id); return err })
	c.root, place.root = root.Path, root.Path

	_, end = steps.Start(ctx, "user")
	user, err := resolveUser(root.Path, req.User, spec.Process)
	if err != nil {
		return nil, err
	}
	end()
	sysctls, err := adapt(spec, place)
	if err != nil {
		return nil, err
	}
	undo = append(undo, func(context.Context) error { _, err := a.releaseDevices(c); return err })
	_, end = steps.Start(ctx, "devices and volumes")
	if err := a.addBlockDevices(ctx, c, spec, req.Devices); err != nil {
		return nil, err
	}
	// A container has mounts of its own once it is created.
	placed, err := a.volumes.Place(c.id, spec.Mounts, req.Memory, req.ShareParts)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, placed.Close()) }()
	end()
	_, end = steps.Start(ctx, "kernel modules")
	a.prepareModules(ctx, spec)
	end()
	c.spec = *spec.Process
	if err := setSysctls(sysctls); err != nil {
		return nil, err
	}
	undo = append(undo, func(context.Context) error { return os.RemoveAll(c.bundle) })
	if err := writeJSON(c.bundle, "config.json", spec); err != nil {
		return nil, err
	}
	if c.init.stdio, err = newStdio(spec.Process.Terminal, req.Stdin); err != nil {
		return nil, err
	}
	undo = append(undo, func(context.Context) error { c.init.stdio.Close(); return nil })
	undo = append(undo, func(ctx context.Context) error { return a.endInit(ctx, c) })
	return user, a.spawnInit(ctx, c)
}

// endInit undoes spawnInit.
func (a *Agent) endInit(ctx context.Context, c *container) error {
	if c.init.pid() == 0 {
		return nil
	}
	if err := c.group.Kill(); err != nil {
		return err
	}
	select {
	case <-c.init.done:
		return a.Runtime.Delete(ctx, c.id)
	case <-ctx.Done():
		return fmt.Errorf("container %s does not end: %w", c.id, context.Cause(ctx))
	}
}

func newStdio(terminal, stdin bool) (*stdio.Set, error) {
	if terminal {
		return stdio.NewTerminal(stdin), nil
	}
	return stdio.NewPipes(stdin)
}

func writeJSON(dir, name string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), text, 0o600)
}

// spawnInit has the runtime create the container. A program that cannot be executed is no failure of creation:
// the container exists, and its start fails.
func (a *Agent) spawnInit(ctx context.Context, c *container) error {
	p := c.init
	ctx, end := steps.Start(ctx, "runc create")
	defer end()
	proc, err := a.Runtime.Create(ctx, c.id, c.bundle, runc.Stdio{Files: p.stdio.Child(), Terminal: p.stdio.Terminal()})
	p.stdio.CloseChild()
	if errors.As(err, &p.refused) {
		return nil
	}
	if err != nil {
		return err
	}
	p.adopt(proc)
	a.work.Go(func() { a.follow(c, p, proc, 0) })
	return nil
}

// follow records the end of a process, before which the kernel had killed ooms processes of the container. The
// end of a container's own ends all others of the container.
func (a *Agent) follow(c *container, p *process, proc *runc.Process, ooms uint64) {
	<-proc.Done()
	e := exit{code: proc.Exit().Code, at: proc.Exit().At, oomKilled: c.group.OOMKills() > ooms}
	if p == c.init {
		// Its own PID namespace would have ended them; a shared one does not.
		if err := c.group.Kill(); err != nil {
			a.Log.Warn("processes of an ended container not killed", logfields.Container, c.id, logfields.Error, err)
		}
	}
	p.stdio.CloseInput()
	p.finish(e)
}

// Start implements agentv1.AgentService.
func (a *Agent) Start(ctx context.Context, req *agentv1.StartRequest) (*agentv1.StartResponse, error) {
	c, p, err := a.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	if err := p.claim(starting, created); err != nil {
		return nil, err
	}
	if req.Exec == "" {
		err = a.startInit(ctx, c)
	} else {
		err = a.startExec(ctx, c, p, req.Exec)
	}
	if err != nil {
		p.fail(err)
		return nil, err
	}
	p.settle(running)
	return &agentv1.StartResponse{Pid: p.pid()}, nil
}

func (a *Agent) startInit(ctx context.Context, c *container) error {
	if c.init.refused != nil {
		return c.init.refused
	}
	ctx, end := steps.Start(ctx, "runc start")
	defer end()
	err := a.Runtime.Start(ctx, c.id)
	if err != nil {
		// It waits for ever to be started, unless it has ended: then its exit is on the way.
		_ = c.init.signal(unix.SIGKILL)
	}
	return err
}

// fail ends a process that could not be started.
func (p *process) fail(err error) {
	e := exit{code: 255, at: time.Now(), reason: err.Error()}
	if refused := new(runc.ProgramError); errors.As(err, &refused) {
		e.code = refused.Code
	}
	p.stdio.CloseInput()
	p.finish(e)
	p.settle(stopped)
}

// Delete implements agentv1.AgentService. It waits for a creation that is under way: the host may have given that up.
func (a *Agent) Delete(ctx context.Context, req *agentv1.DeleteRequest) (*agentv1.DeleteResponse, error) {
	_, p, err := a.process(req.Container, req.Exec)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.made:
	case <-ctx.Done():
		return nil, fmt.Errorf("delete %s: it is %s: %w", p.name, creating, ctx.Err())
	}
	c, p, err := a.process(req.Container, req.Exec) // one that was not created has gone
	if err != nil {
		return nil, err
	}
	if err := p.claim(deleting, created, stopped); err != nil {
		return nil, err
	}
	if req.Exec != "" {
		c.mu.Lock()
		delete(c.execs, req.Exec)
		c.mu.Unlock()
		p.stdio.Close()
		p.finish(neverStarted())
		_ = os.Remove(filepath.Join(c.bundle, execFile(req.Exec))) // its start would have removed it
		return &agentv1.DeleteResponse{}, nil
	}
	disks, err := a.remove(context.WithoutCancel(ctx), c)
	if err != nil {
		p.settle(stopped)
		return nil, err
	}
	a.forget(c)
	return &agentv1.DeleteResponse{Disks: disks}, nil
}

func neverStarted() exit {
	return exit{code: 128 + uint32(unix.SIGKILL), at: time.Now(), reason: "deleted before it was started"}
}

func (c *container) processes() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(slices.Collect(maps.Values(c.execs)), c.init)
}

// remove ends what is left of a container and frees what it has. It may be called again after an error.
func (a *Agent) remove(ctx context.Context, c *container) ([]*agentv1.DiskAddress, error) {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	if err := c.group.Kill(); err != nil {
		return nil, err
	}
	for _, p := range c.processes() {
		if p.is(creating) {
			continue // Exec sees that the container has gone
		}
		p.stdio.Close()
		if p.pid() == 0 {
			p.finish(neverStarted())
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s does not end: %w", p.name, context.Cause(ctx))
		}
	}
	if err := a.Runtime.Delete(ctx, c.id); err != nil {
		return nil, err
	}
	disks, err := a.Roots.Unmount(c.id)
	devices, devErr := a.releaseDevices(c)
	return append(disks, devices...), errors.Join(err, devErr, os.RemoveAll(c.bundle))
}
