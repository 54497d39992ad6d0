package taskshim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

// closeTimeout bounds what is done about execs when their client goes.
const closeTimeout = 5 * time.Second

// execution is an exec of this client, whose FIFOs it holds.
type execution struct {
	*monitor.Execution
	req   task.ExecRequest
	ends  *stdio.Ends
	fifos shimclient.FIFOs
	dir   string
	size  *[2]uint32 // guarded by the container's mu
}

// Exec registers a further process. Its stdio is joined with Attach, and Start runs it.
func (p *Pod) Exec(_ context.Context, req task.ExecRequest) error {
	if !monitor.ValidID(req.ID.Container) || !monitor.ValidID(req.ID.Exec) {
		return fmt.Errorf("exec %q in container %q: ids have letters, digits and _.+- in them: %w", req.ID.Exec, req.ID.Container, errdefs.ErrInvalidArgument)
	}
	if !json.Valid(req.Process) {
		return fmt.Errorf("exec %s: the process is no JSON: %w", req.ID.Exec, errdefs.ErrInvalidArgument)
	}
	c, err := p.container(req.ID.Container)
	if err != nil {
		return err
	}
	if _, err := c.runs(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[req.ID.Exec] != nil {
		return fmt.Errorf("exec %s in container %s: %w", req.ID.Exec, c.id, errdefs.ErrAlreadyExists)
	}
	e := &execution{req: req, dir: monitor.StdioDir(p.Dir(), req.ID)}
	output := req.Stdin || req.Stdout || req.Stderr || req.Terminal
	if e.ends, err = stdio.NewFIFOs(e.dir, [3]bool{req.Stdin, output, output && !req.Terminal}, req.Terminal); err != nil {
		return err
	}
	e.fifos = fifosOf(e.dir, req.Stdin, output, req.Terminal)
	e.Execution = monitor.NewExecution(req, e.ends)
	if !req.Terminal {
		e.InputEnded = func() { c.closeInput(req.ID) }
	}
	c.execs[req.ID.Exec] = e
	return nil
}

func (c *container) execution(id task.ID) (*execution, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.execs[id.Exec]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("exec %s in container %s: %w", id.Exec, c.id, errdefs.ErrNotFound)
}

func (c *container) startExec(ctx context.Context, id task.ID) (uint32, error) {
	e, err := c.execution(id)
	if err != nil {
		return 0, err
	}
	shim, err := c.runs()
	if err != nil {
		return 0, err
	}
	if err := e.Begin(); err != nil {
		return 0, err
	}
	pid, err := c.runExec(ctx, shim, e)
	if err != nil {
		err = classified(err)
		e.ends.Close()
		e.Finish(task.Exit{}, err)
		return 0, err
	}
	c.pod.work.Go(func() {
		exit, err := shim.Wait(c.pod.ctx, id)
		if err != nil {
			err = fmt.Errorf("exec %s in container %s: how it ended is not known: %w", id.Exec, c.id, err)
		}
		e.Finish(exit, err)
	})
	return pid, nil
}

func (c *container) runExec(ctx context.Context, shim *connection, e *execution) (uint32, error) {
	if err := shim.Exec(ctx, e.req, e.fifos); err != nil {
		return 0, err
	}
	pid, err := shim.Tasks.Start(ctx, e.req.ID)
	if err != nil { // a call that was given up may have started it all the same
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return 0, errors.Join(err, ignoreEnded(deleteTask(undo, shim, e.req.ID)))
	}
	e.ends.CloseChild() // the shim has its own
	c.mu.Lock()
	size := e.size
	c.mu.Unlock()
	if size != nil {
		_ = shim.Resize(ctx, e.req.ID, size[0], size[1]) // it may have ended
	}
	return pid, nil
}

// Wait blocks until the process has ended and its output was drained.
func (p *Pod) Wait(ctx context.Context, id task.ID) (task.Exit, error) {
	if id.Exec == "" {
		return p.Client.Wait(ctx, id)
	}
	c, err := p.container(id.Container)
	if err != nil {
		return task.Exit{}, err
	}
	e, err := c.execution(id)
	if err != nil {
		return task.Exit{}, err
	}
	return e.Execution.Wait(ctx)
}

// Attach joins the stdio of a process and returns when its output has ended, or ctx. An exec is attached once, before its
// start.
func (p *Pod) Attach(ctx context.Context, id task.ID, streams task.Stdio) error {
	c, err := p.container(id.Container)
	if err != nil {
		return err
	}
	if id.Exec != "" {
		e, err := c.execution(id)
		if err != nil {
			return err
		}
		return e.Execution.Attach(ctx, streams)
	}
	if rec := c.record(); streams.Stdin != nil && rec.StdinOnce && !rec.Terminal {
		// The monitor ends its input when this client's has ended, and when it goes. The shim holds it open as well.
		ended := func() { c.closeInput(c.task()) }
		streams.Stdin = &inputEnd{streams.Stdin, ended}
		defer ended()
	}
	return p.Client.Attach(ctx, id, streams)
}

// inputEnd tells when there is no more to read.
type inputEnd struct {
	io.Reader
	ended func()
}

func (i *inputEnd) Read(b []byte) (int, error) {
	n, err := i.Reader.Read(b)
	if err != nil {
		i.ended()
	}
	return n, err
}

// closeInput has the shim let go of a process's input; one that is not there yet is told when it is.
func (c *container) closeInput(id task.ID) {
	if id.Exec == "" {
		c.mu.Lock()
		c.inputEnded = true
		c.mu.Unlock()
	}
	shim := c.connected()
	if shim == nil {
		return
	}
	ctx, cancel := context.WithTimeout(c.pod.ctx, closeTimeout)
	defer cancel()
	if err := ignoreEnded(shim.CloseInput(ctx, id)); err != nil {
		c.pod.opts.Log.DebugContext(ctx, "input not closed", logfields.Container, c.id, logfields.Exec, id.Exec, logfields.Error, err)
	}
}

// Resize sets the size of a terminal, or the one that it gets when it comes.
func (p *Pod) Resize(ctx context.Context, id task.ID, width, height uint32) error {
	c, err := p.container(id.Container)
	if err != nil {
		return err
	}
	size := [2]uint32{width, height}
	if id.Exec != "" {
		e, err := c.execution(id)
		if err != nil {
			return err
		}
		c.mu.Lock()
		e.size = &size
		c.mu.Unlock()
		if !e.Running() {
			return nil
		}
	} else {
		c.mu.Lock()
		c.size = &size
		c.mu.Unlock()
	}
	if shim := c.connected(); shim != nil {
		return classified(shim.Resize(ctx, id, width, height))
	}
	return nil
}

func (c *container) deleteExec(ctx context.Context, id task.ID) error {
	e, err := c.execution(id)
	if err != nil {
		return err
	}
	if e.Running() {
		return fmt.Errorf("delete: exec %s in container %s runs: %w", id.Exec, c.id, errdefs.ErrFailedPrecondition)
	}
	e.ends.Close()
	e.Finish(task.Exit{}, fmt.Errorf("exec %s in container %s was deleted: %w", id.Exec, c.id, errdefs.ErrNotFound))
	if shim := c.connected(); shim != nil {
		if err := ignoreEnded(deleteTask(ctx, shim, id)); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, id.Exec)
	return os.RemoveAll(e.dir)
}

// closeExecs kills the execs of this client.
func (c *container) closeExecs() {
	ctx, cancel := context.WithTimeout(c.pod.ctx, closeTimeout)
	defer cancel()
	c.mu.Lock()
	var running []task.ID
	for _, e := range c.execs {
		if e.ends.Close(); e.Running() {
			running = append(running, e.req.ID)
		}
	}
	c.mu.Unlock()
	shim := c.connected()
	if shim == nil {
		return
	}
	for _, id := range running {
		_ = shim.Signal(ctx, id, uint32(unix.SIGKILL), false) // the next daemon tries it again
	}
}

// killExecs begins to end the execs of an earlier client, whose streams are nobody's. Those that come later are this client's.
func (c *container) killExecs() {
	ctx, log := c.pod.ctx, c.pod.opts.Log
	left, err := monitor.StdioDirsOfExecs(c.pod.Dir(), c.id)
	if err != nil {
		log.WarnContext(ctx, "execs of an earlier daemon are not known", logfields.Container, c.id, logfields.Error, err)
	}
	c.pod.work.Go(func() {
		for _, id := range left {
			if err := c.killExec(ctx, id); err != nil && ctx.Err() == nil {
				log.WarnContext(ctx, "exec of an earlier daemon could not be removed; it ends with its container", logfields.Container, c.id, logfields.Exec, id.Exec, logfields.Error, err)
			}
		}
	})
}

func (c *container) killExec(ctx context.Context, id task.ID) error {
	if shim := c.connected(); shim != nil {
		if err := ignoreEnded(deleteTask(ctx, shim, id)); err != nil {
			return err
		}
	}
	return os.RemoveAll(monitor.StdioDir(c.pod.Dir(), id))
}
