package server

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/steps"
	"github.com/pistis-run/pistis/internal/task"
)

// serveExec runs a further process and answers twice: when it runs, and when it has ended. An exec belongs to its client:
// when that goes, the process is killed.
func (s *Server) serveExec(ctx context.Context, conn monitor.Conn, req monitor.Request, files []*os.File) {
	c, err := s.container(req.ID.Container)
	if err != nil {
		_ = reply(ctx, conn, nil, err)
		return
	}
	p, proc, err := s.exec(ctx, c, req, files)
	for _, f := range files {
		f.Close() // the process has its own
	}
	if err != nil {
		_ = reply(ctx, conn, nil, err)
		return
	}
	started := monitor.StartResult{PID: uint32(proc.PID())}
	if proc.Console != nil {
		_ = reply(ctx, conn, started, nil, proc.Console)
		proc.Console.Close()
	} else {
		_ = reply(ctx, conn, started, nil)
	}
	gone, stop := untilGone(s.ctx, conn)
	defer stop()
	select {
	case <-proc.Done():
	case <-gone.Done():
		_ = p.signal(unix.SIGKILL) // one that has ended needs none
		<-proc.Done()
	}
	exit := task.Exit{Code: proc.Exit().Code, At: proc.Exit().At}
	p.finish(exit)
	c.removeExec(p)
	_ = reply(s.ctx, conn, exit, nil)
}

// exec runs a further process with the client's descriptors, or with a terminal.
func (s *Server) exec(ctx context.Context, c *container, req monitor.Request, files []*os.File) (*process, *runc.Process, error) {
	p := newProcess(req.ID, starting)
	if !monitor.ValidID(req.ID.Exec) {
		return nil, nil, fmt.Errorf("exec in container %s: id %q: letters, digits and _.+- are possible: %w", c.id.Container, req.ID.Exec, errdefs.ErrInvalidArgument)
	}
	var args monitor.ExecArgs
	if err := decode(req.Args, &args); err != nil {
		return nil, nil, err
	}
	stdio, err := execStdio(args, files)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", p.name(), err)
	}
	if c.request.External {
		return nil, nil, c.foreign("exec")
	}
	if err := c.check(opExec); err != nil {
		return nil, nil, err
	}
	if err := c.addExec(p); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	ctx, end := steps.Start(ctx, "runtime exec")
	defer end()
	proc, err := s.runtime.Exec(ctx, c.id.Container, c.dir, monitor.ProcessFile(s.dir, p.id), stdio)
	if err != nil {
		c.removeExec(p)
		p.fail(task.Exit{Code: exitUnknown, Reason: err.Error()})
		return nil, nil, fmt.Errorf("%s: %w", p.name(), err)
	}
	p.adopt(proc)
	if !c.is(running) {
		// The container has ended meanwhile, and its processes were killed before this one was there.
		_ = p.signal(unix.SIGKILL)
	}
	return p, proc, nil
}

func execStdio(args monitor.ExecArgs, files []*os.File) (runc.Stdio, error) {
	wanted := [3]bool{args.Stdin, args.Stdout, args.Stderr}
	stdio := runc.Stdio{Files: make([]*os.File, 3), Terminal: args.Terminal}
	for fd, is := range wanted {
		if !is {
			continue
		}
		if args.Terminal || len(files) == 0 {
			return stdio, fmt.Errorf("its descriptors are not those that were announced: %w", errdefs.ErrInvalidArgument)
		}
		stdio.Files[fd], files = files[0], files[1:]
	}
	if len(files) > 0 {
		return stdio, fmt.Errorf("%d descriptors too many: %w", len(files), errdefs.ErrInvalidArgument)
	}
	return stdio, nil
}

// addExec reserves an exec's id.
func (c *container) addExec(p *process) error {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	if c.execs[p.id.Exec] != nil {
		return fmt.Errorf("%s: %w", p.name(), errdefs.ErrAlreadyExists)
	}
	if len(c.execs) >= maxExecs {
		return fmt.Errorf("%s: there are %d execs that have not ended: %w", p.name(), maxExecs, errdefs.ErrResourceExhausted)
	}
	c.execs[p.id.Exec] = p
	return nil
}

func (c *container) removeExec(p *process) {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	delete(c.execs, p.id.Exec)
}

// signalExec sends to an exec, once it is there.
func (c *container) signalExec(ctx context.Context, id string, sig unix.Signal) error {
	c.execMu.Lock()
	p := c.execs[id]
	c.execMu.Unlock()
	if p == nil {
		return fmt.Errorf("signal: exec %s in container %s: %w", id, c.id.Container, errdefs.ErrNotFound)
	}
	select {
	case <-p.settled:
		return p.signal(sig)
	case <-ctx.Done():
		return ctx.Err()
	}
}
