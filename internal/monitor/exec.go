package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

// execution is an exec of this client. The monitor learns of it when it starts, and kills it when the connection of that call
// ends before the process.
type execution struct {
	*Execution
	mu   sync.Mutex
	conn *Conn // nil before the start
}

// Exec registers a further process. Its stdio is joined with Attach, and Start runs it; until then nobody but this client
// knows it. The process must name its user.
func (c *Client) Exec(_ context.Context, req task.ExecRequest) (err error) {
	if !ValidID(req.ID.Container) || !ValidID(req.ID.Exec) {
		return fmt.Errorf("exec %q in container %q: ids have letters, digits and _.+- in them: %w", req.ID.Exec, req.ID.Container, errdefs.ErrInvalidArgument)
	}
	var process struct {
		User json.RawMessage `json:"user"`
	}
	if err := json.Unmarshal(req.Process, &process); err != nil {
		return fmt.Errorf("%s: process: %w: %w", name(req.ID), err, errdefs.ErrInvalidArgument)
	}
	if process.User == nil {
		return fmt.Errorf("%s: the process names no user: %w", name(req.ID), errdefs.ErrInvalidArgument)
	}
	ends := stdio.NewTerminal()
	if !req.Terminal {
		if ends, err = stdio.NewPipes([3]bool{req.Stdin, req.Stdout, req.Stderr}); err != nil {
			return err
		}
	}
	e := &execution{Execution: NewExecution(req, ends)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[req.ID] != nil {
		ends.Close()
		return fmt.Errorf("%s: %w", name(req.ID), errdefs.ErrAlreadyExists)
	}
	c.execs[req.ID] = e
	return nil
}

// execution finds an exec of this client; nil when it has none.
func (c *Client) execution(id task.ID) *execution {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.execs[id]
}

// forget lets go of an exec, and kills it where it runs.
func (c *Client) forget(e *execution) {
	c.mu.Lock()
	if c.execs[e.req.ID] == e {
		delete(c.execs, e.req.ID)
	}
	c.mu.Unlock()
	e.ends.Close()
	e.mu.Lock()
	conn := e.conn
	e.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	e.Finish(task.Exit{}, fmt.Errorf("%s was deleted: %w", name(e.req.ID), errdefs.ErrNotFound))
}

// startExec gives the process its descriptors and closes them here, so that the end of its output is seen. The connection
// stays open for the exit.
func (c *Client) startExec(ctx context.Context, id task.ID) (uint32, error) {
	e := c.execution(id)
	if e == nil {
		return 0, fmt.Errorf("%s: %w", name(id), errdefs.ErrNotFound)
	}
	if err := e.Begin(); err != nil {
		return 0, err
	}
	pid, err := c.runExec(ctx, e)
	if err != nil {
		e.ends.Close()
		e.Finish(task.Exit{}, err)
	}
	return pid, err
}

func (c *Client) runExec(ctx context.Context, e *execution) (uint32, error) {
	if err := e.writeProcess(c.dir); err != nil {
		return 0, err
	}
	defer os.Remove(ProcessFile(c.dir, e.req.ID))
	args := ExecArgs{Terminal: e.req.Terminal}
	var files []*os.File
	for fd, f := range e.ends.Child() {
		if f != nil {
			*[]*bool{&args.Stdin, &args.Stdout, &args.Stderr}[fd] = true
			files = append(files, f)
		}
	}
	var result StartResult
	conn, received, err := c.open(ctx, Request{Verb: VerbExec, ID: e.req.ID}, args, &result, files...)
	e.ends.CloseChild()
	switch {
	case err != nil:
		return 0, err
	case e.req.Terminal && len(received) == 1:
		e.ends.SetConsole(received[0])
	case e.req.Terminal || len(received) > 0:
		closeAll(received)
		conn.Close()
		return 0, fmt.Errorf("%s: the monitor sent %d terminals: %w", name(e.req.ID), len(received), errdefs.ErrInternal)
	}
	e.mu.Lock()
	e.conn = &conn
	e.mu.Unlock()
	c.watch.Go(func() { e.await(conn) })
	return result.PID, nil
}

// writeProcess writes the process where the runtime will read it.
func (e *execution) writeProcess(dir bundle.Dir) error {
	process := e.req.Process
	if width, height := e.ends.Size(); width > 0 {
		// The program may ask for its size at once, before there is a terminal here that could be resized.
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(process, &fields); err != nil {
			return fmt.Errorf("%s: process: %w: %w", name(e.req.ID), err, errdefs.ErrInvalidArgument)
		}
		var err error
		fields["consoleSize"] = fmt.Appendf(nil, `{"width":%d,"height":%d}`, width, height)
		if process, err = json.Marshal(fields); err != nil {
			return err
		}
	}
	err := os.WriteFile(ProcessFile(dir, e.req.ID), process, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: the container does not run: %w", name(e.req.ID), errdefs.ErrFailedPrecondition)
	}
	return err
}

// await takes the second answer to the start: the exit.
func (e *execution) await(conn Conn) {
	var reply Reply
	var exit task.Exit
	files, err := conn.Receive(&reply)
	closeAll(files)
	switch {
	case err != nil:
		err = fmt.Errorf("%s: the monitor has gone: %w: %w", name(e.req.ID), err, errdefs.ErrUnavailable)
	case reply.Error != nil:
		err = reply.Error
	default:
		err = json.Unmarshal(reply.Result, &exit)
	}
	conn.Close()
	e.Finish(exit, err)
}
