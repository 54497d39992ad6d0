package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/steps"
)

// Exec implements agentv1.AgentService.
func (a *Agent) Exec(_ context.Context, req *agentv1.ExecRequest) (*agentv1.Empty, error) {
	if err := checkID("exec", req.Id); err != nil {
		return nil, err
	}
	c, err := a.container(req.Container)
	if err != nil {
		return nil, err
	}
	if !c.init.is(running) {
		return nil, precondition("container %s is not running", c.id)
	}
	p := newProcess(c.id + "/" + req.Id)
	if err := c.reserve(req.Id, p); err != nil {
		return nil, err
	}
	defer close(p.made)
	err = a.prepareExec(c, p, req)
	if err != nil {
		c.mu.Lock()
		delete(c.execs, req.Id)
		c.mu.Unlock()
		return nil, err
	}
	p.settle(created)
	return &agentv1.Empty{}, nil
}

func (c *container) reserve(id string, p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[id] != nil {
		return fmt.Errorf("exec %s in container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	if len(c.execs) >= maxExecs {
		return fmt.Errorf("exec %s: container %s has %d of them: %w", id, c.id, maxExecs, errdefs.ErrResourceExhausted)
	}
	c.execs[id] = p
	return nil
}

func (a *Agent) prepareExec(c *container, p *process, req *agentv1.ExecRequest) error {
	spec, err := execProcess(req.Process, c.spec)
	if err != nil {
		return err
	}
	if req.User != nil || !zeroUser(spec.User) {
		if _, err := resolveUser(c.root, req.User, spec); err != nil {
			return err
		}
	} else {
		spec.User = c.spec.User
		inheritHome(spec, c.spec)
	}
	if err := writeJSON(c.bundle, execFile(req.Id), spec); err != nil {
		return err
	}
	p.stdio, err = newStdio(spec.Terminal, req.Stdin)
	return err
}

func execFile(id string) string { return "exec-" + id + ".json" }

// execProcess parses a process and takes what it does not say from the container's.
func execProcess(text []byte, own specs.Process) (*specs.Process, error) {
	if len(text) > maxSpec {
		return nil, invalid("process: %d bytes, at most %d are possible", len(text), maxSpec)
	}
	p := &specs.Process{}
	if err := json.Unmarshal(text, p); err != nil {
		return nil, invalid("process: %w", err)
	}
	if len(p.Args) == 0 {
		return nil, invalid("process: no arguments")
	}
	if p.Cwd == "" {
		p.Cwd = own.Cwd
	}
	if p.Env == nil {
		p.Env = append([]string(nil), own.Env...)
	}
	// A process must not get around what the container was denied.
	p.NoNewPrivileges = p.NoNewPrivileges || own.NoNewPrivileges
	return p, nil
}

// zeroUser: root without further groups is what a process has that names no user. Whoever wants root says so
// in the request.
func zeroUser(u specs.User) bool {
	return u.UID == 0 && u.GID == 0 && len(u.AdditionalGids) == 0
}

func (a *Agent) startExec(ctx context.Context, c *container, p *process, id string) error {
	if !c.init.is(running) {
		return precondition("container %s is not running", c.id)
	}
	ooms := c.group.OOMKills()
	file := filepath.Join(c.bundle, execFile(id))
	defer os.Remove(file)
	ctx, end := steps.Start(ctx, "runc exec")
	defer end()
	proc, err := a.Runtime.Exec(ctx, c.id, c.bundle, file, runc.Stdio{Files: p.stdio.Child(), Terminal: p.stdio.Terminal()})
	p.stdio.CloseChild()
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = precondition("container %s is being deleted", c.id)
		}
		return err
	}
	p.adopt(proc)
	a.work.Go(func() { a.follow(c, p, proc, ooms) })
	return nil
}
