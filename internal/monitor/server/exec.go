package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/task"
)

// exec runs a further process with the client's descriptors, or with a terminal, which is returned and the caller's. It
// goes on when the caller has given up: the process ends by its client's end of the stdio, or by a signal.
func (s *Server) exec(c *container, id string, args monitor.ExecArgs, files []*os.File) (pid int, console *os.File, err error) {
	stdio, err := execStdio(args, files)
	if err != nil {
		return 0, nil, fmt.Errorf("exec %s in container %s: %w", id, c.id.Container, err)
	}
	if err := c.check(opExec); err != nil {
		return 0, nil, err
	}
	p := newProcess(task.ID{Container: c.id.Container, Exec: id}, starting)
	if err := c.addExec(p); err != nil {
		return 0, nil, err
	}
	proc, err := s.runExec(c, args, stdio)
	if err != nil {
		err = fmt.Errorf("%s: %w", p.name(), err)
		c.removeExec(id)
		p.fail(task.Exit{Code: exitUnknown, Reason: err.Error()})
		return 0, nil, err
	}
	p.adopt(proc)
	s.work.Go(func() {
		select {
		case <-proc.Done():
			p.finish(task.Exit{Code: proc.Exit().Code, At: proc.Exit().At})
		case <-s.ctx.Done():
		}
	})
	if !c.is(running) {
		// The container has ended meanwhile, and its processes were killed before this one was there.
		_ = p.signal(unix.SIGKILL)
	}
	return proc.PID(), proc.Console, nil
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

func (s *Server) runExec(c *container, args monitor.ExecArgs, stdio runc.Stdio) (*runc.Process, error) {
	process, err := complete(args, c.user)
	if err != nil {
		return nil, err
	}
	file, err := writeTemp(c.dir, "process-", process)
	if err != nil {
		return nil, err
	}
	defer os.Remove(file)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	return s.runtime.Exec(ctx, c.id.Container, c.dir, file, stdio)
}

// complete gives a process the container's user where it names none, and its terminal its size.
func complete(args monitor.ExecArgs, user json.RawMessage) (json.RawMessage, error) {
	var named struct {
		User json.RawMessage `json:"user"`
	}
	if err := json.Unmarshal(args.Process, &named); err != nil {
		return nil, fmt.Errorf("process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	sized := args.Terminal && args.Width > 0
	if (named.User != nil || user == nil) && !sized {
		return args.Process, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(args.Process, &fields); err != nil {
		return nil, fmt.Errorf("process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if named.User == nil && user != nil {
		fields["user"] = user
	}
	if sized {
		fields["consoleSize"] = json.RawMessage(fmt.Sprintf(`{"width":%d,"height":%d}`, args.Width, args.Height))
	}
	return json.Marshal(fields)
}

// lookup finds the container's own process or an exec.
func (c *container) lookup(exec string) (*process, error) {
	if exec == "" {
		return c.process, nil
	}
	c.execMu.Lock()
	defer c.execMu.Unlock()
	if p := c.execs[exec]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %s in container %s: %w", exec, c.id.Container, errdefs.ErrNotFound)
}

// addExec reserves an exec's id.
func (c *container) addExec(p *process) error {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	if c.execs[p.id.Exec] != nil {
		return fmt.Errorf("%s: %w", p.name(), errdefs.ErrAlreadyExists)
	}
	if len(c.execs) >= maxExecs {
		return fmt.Errorf("%s: there are %d execs that were not deleted: %w", p.name(), maxExecs, errdefs.ErrResourceExhausted)
	}
	c.execs[p.id.Exec] = p
	return nil
}

func (c *container) removeExec(id string) {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	delete(c.execs, id)
}

// deleteExec forgets an exec that has ended.
func (c *container) deleteExec(p *process) error {
	if err := p.step(opDelete); err != nil {
		return err
	}
	c.removeExec(p.id.Exec)
	return nil
}

// signalExec sends to an exec, once it is there.
func signalExec(ctx context.Context, p *process, sig unix.Signal) error {
	select {
	case <-p.settled:
	case <-ctx.Done():
		return ctx.Err()
	}
	if p.is(stopped) {
		return fmt.Errorf("signal: %s has ended: %w", p.name(), errdefs.ErrNotFound)
	}
	return p.signal(sig)
}
