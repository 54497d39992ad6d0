package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/steps"
	"github.com/pistis-run/pistis/internal/task"
)

// Client speaks to one monitor.
type Client struct {
	dir     bundle.Dir
	pid     int
	process *bundle.Handle
	// child is the monitor where this process has started it and so must reap it.
	child *os.Process
	// watch ends when the monitor or the client has; died is closed in the first case.
	watch  sync.WaitGroup
	cancel context.CancelFunc
	died   chan struct{}
	closed <-chan struct{} // by Close

	mu    sync.Mutex
	execs map[task.ID]*execution
}

// The client is a view of a pod's processes, but for the creation of containers.
var (
	_ task.Attacher    = (*Client)(nil)
	_ task.Resizer     = (*Client)(nil)
	_ task.LogReopener = (*Client)(nil)
	_ task.Updater     = (*Client)(nil)
)

// connect opens the process that holds the bundle. Unavailable when it has gone.
func connect(dir bundle.Dir, child *os.Process) (*Client, error) {
	record, err := dir.ReadShim()
	if err != nil {
		return nil, err
	}
	process, err := record.Process.Open()
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("the monitor of %s has gone: %w: %w", dir, err, errdefs.ErrUnavailable)
	} else if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		dir: dir, pid: record.Process.PID, process: process, child: child,
		cancel: cancel, died: make(chan struct{}), closed: ctx.Done(), execs: map[task.ID]*execution{},
	}
	c.watch.Go(func() {
		if process.Wait(ctx) != nil {
			return
		}
		if child != nil {
			_ = wait(child) // how it ended says no more than that it did
		}
		close(c.died)
	})
	return c, nil
}

// PID is the monitor's.
func (c *Client) PID() int { return c.pid }

// Close lets go of the monitor, which lives on with its containers. Execs of this client are killed. A monitor that this
// process has launched is reaped by its client: one that shall end is closed after its end, and not before.
func (c *Client) Close() error {
	c.cancel()
	c.mu.Lock()
	execs := slices.Collect(maps.Values(c.execs))
	c.mu.Unlock()
	for _, e := range execs {
		c.forget(e)
	}
	c.watch.Wait()
	c.process.Close() // a wait that was given up has closed it already
	return nil
}

// WaitEnd blocks until the monitor's process has ended, and says what is known of the reason. The error is only ctx's, or
// Unavailable after Close.
func (c *Client) WaitEnd(ctx context.Context) (reason string, err error) {
	select {
	case <-c.died:
	case <-c.closed:
		return "", fmt.Errorf("wait for monitor: the client was closed: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	reason = "the container monitor ended unexpectedly"
	if text := bundle.LastWords(c.dir.Log()); text != "" {
		reason += "; its last log lines: " + text
	}
	return reason, nil
}

// Shutdown ends the monitor and waits until it has gone. FailedPrecondition while there are containers; with force they
// are killed and deleted. The bundle stays, for Cleanup. It is nil for a monitor that has gone already.
func (c *Client) Shutdown(ctx context.Context, force bool) error {
	err := c.call(ctx, Request{Verb: VerbShutdown}, ShutdownArgs{Force: force}, nil)
	if err != nil && !errdefs.IsUnavailable(err) {
		return err
	}
	select {
	case <-c.died:
		return nil
	case <-c.closed:
		return fmt.Errorf("shut down monitor %d: the client was closed: %w", c.pid, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("shut down monitor %d: %w", c.pid, context.Cause(ctx))
	}
}

// call makes one call; args and result may be nil.
func (c *Client) call(ctx context.Context, req Request, args, result any, files ...*os.File) error {
	conn, received, err := c.open(ctx, req, args, result, files...)
	if err != nil {
		return err
	}
	closeAll(received)
	return conn.Close()
}

// open makes a call and leaves its connection open; the caller closes that, and the descriptors that came with the reply.
func (c *Client) open(ctx context.Context, req Request, args, result any, files ...*os.File) (_ Conn, received []*os.File, err error) {
	req.Version, req.Steps = Version, steps.Recording(ctx)
	if args != nil {
		if req.Args, err = json.Marshal(args); err != nil {
			return Conn{}, nil, err
		}
	}
	socket, err := (&net.Dialer{}).DialContext(ctx, "unix", c.dir.ShimSocket())
	if err != nil {
		return Conn{}, nil, c.failed(ctx, req, err)
	}
	conn := Conn{socket.(*net.UnixConn)}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	var reply Reply
	if err = conn.Send(req, files...); err == nil {
		received, err = conn.Receive(&reply)
	}
	if report, err := steps.Decode(reply.Steps); err == nil && reply.Steps != nil {
		steps.Add(ctx, report)
	}
	switch {
	case !stop() || err != nil:
		err = c.failed(ctx, req, err)
	case reply.Error != nil:
		err = reply.Error
	case result != nil:
		err = json.Unmarshal(reply.Result, result)
	}
	if err != nil {
		closeAll(received)
		conn.Close()
		return Conn{}, nil, err
	}
	return conn, received, nil
}

// failed is the error of a call without an answer.
func (c *Client) failed(ctx context.Context, req Request, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("monitor %d: %s: %w", c.pid, req.Verb, context.Cause(ctx))
	case errdefs.IsInvalidArgument(err):
		return err // never sent, or not understood
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("it has gone")
	}
	return fmt.Errorf("monitor %d: %s: %w: %w", c.pid, req.Verb, err, errdefs.ErrUnavailable)
}

// Program runs a program in the monitor's place, to its end. When ctx ends it is killed.
func (c *Client) Program(ctx context.Context, args ProgramArgs) (result ProgramResult, err error) {
	err = c.call(ctx, Request{Verb: VerbProgram}, args, &result)
	return result, err
}

// Exited tells how an external container has ended. It returns when the output was drained, and what Wait will say: the first
// exit that was told.
func (c *Client) Exited(ctx context.Context, container string, exit task.Exit) (counts task.Exit, err error) {
	err = c.call(ctx, Request{Verb: VerbExited, ID: task.ID{Container: container}}, exit, &counts)
	return counts, err
}

// Dir is the monitor's bundle.
func (c *Client) Dir() bundle.Dir { return c.dir }

// Create registers a container. Nothing of it runs, and the runtime does not know it yet.
func (c *Client) Create(ctx context.Context, req CreateRequest) error {
	return c.call(ctx, Request{Verb: VerbCreate, ID: task.ID{Container: req.ID}}, req, nil)
}

// Start runs a container, or an exec with the stdio that Attach has joined, and returns the pid on the host. When that fails
// the runtime has nothing left of it, and the error has the runtime's words; a program that cannot be executed is
// InvalidArgument and reads as exec: "program": reason.
func (c *Client) Start(ctx context.Context, id task.ID) (pid uint32, err error) {
	if id.Exec != "" {
		return c.startExec(ctx, id)
	}
	var result StartResult
	err = c.call(ctx, Request{Verb: VerbStart, ID: id}, nil, &result)
	return result.PID, err
}

// InitPID is the pid, on the host, of a running container's first process. FailedPrecondition for one that does not run.
func (c *Client) InitPID(ctx context.Context, container string) (uint32, error) {
	var result StartResult
	err := c.call(ctx, Request{Verb: VerbPID, ID: task.ID{Container: container}}, nil, &result)
	return result.PID, err
}

// Signal sends to one process, or to all of its container. NotFound for one that has ended. SIGKILL also ends a container
// whose start is under way or has not been asked for.
func (c *Client) Signal(ctx context.Context, id task.ID, signal uint32, all bool) error {
	return c.call(ctx, Request{Verb: VerbSignal, ID: id}, SignalArgs{Signal: signal, All: all}, nil)
}

// Wait blocks until the process has ended and its output was drained. Unavailable when the monitor has gone; how the
// process ends is lost then.
func (c *Client) Wait(ctx context.Context, id task.ID) (exit task.Exit, err error) {
	if id.Exec == "" {
		err = c.call(ctx, Request{Verb: VerbWait, ID: id}, nil, &exit)
		return exit, err
	}
	if e := c.execution(id); e != nil {
		return e.Wait(ctx)
	}
	return task.Exit{}, fmt.Errorf("%s: %w", name(id), errdefs.ErrNotFound)
}

// Delete forgets a process that has ended or was never started. FailedPrecondition for one that runs.
func (c *Client) Delete(ctx context.Context, id task.ID) error {
	if id.Exec == "" {
		return c.call(ctx, Request{Verb: VerbDelete, ID: id}, nil, nil)
	}
	e := c.execution(id)
	switch {
	case e == nil:
		return fmt.Errorf("%s: %w", name(id), errdefs.ErrNotFound)
	case e.Running():
		return fmt.Errorf("delete: %s runs: %w", name(id), errdefs.ErrFailedPrecondition)
	}
	c.forget(e)
	return nil
}

// Resize sets the size of a terminal, which one that is not there yet is made with.
func (c *Client) Resize(ctx context.Context, id task.ID, width, height uint32) error {
	size := ResizeArgs{Width: uint16(min(width, 0xffff)), Height: uint16(min(height, 0xffff))}
	if id.Exec == "" {
		return c.call(ctx, Request{Verb: VerbResize, ID: id}, size, nil)
	}
	e := c.execution(id)
	if e == nil {
		return fmt.Errorf("resize: %s is none of this client's: %w", name(id), errdefs.ErrNotFound)
	}
	return e.ends.Resize(size.Width, size.Height)
}

// ReopenLog opens a container's log anew.
func (c *Client) ReopenLog(ctx context.Context, container string) error {
	return c.call(ctx, Request{Verb: VerbReopen, ID: task.ID{Container: container}}, nil, nil)
}

// Update changes limits of a container, which may run or be created; what resources leave out stays as it is.
func (c *Client) Update(ctx context.Context, container string, resources *specs.LinuxResources) error {
	return c.call(ctx, Request{Verb: VerbUpdate, ID: task.ID{Container: container}}, resources, nil)
}

// Checkpoint writes the processes of a running container into the directory images, and criu's log into work; the container
// goes on. When ctx ends the runtime is killed, and criu undoes what it has done to the container.
func (c *Client) Checkpoint(ctx context.Context, container, images, work string) error {
	args := CheckpointArgs{Images: images, Work: work}
	return c.call(ctx, Request{Verb: VerbCheckpoint, ID: task.ID{Container: container}}, args, nil)
}
