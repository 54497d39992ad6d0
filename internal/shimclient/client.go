package shimclient

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	stepsrpc "github.com/pistis-run/pistis/internal/steps/rpc"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	shimService = "pistis.shim.v1.Shim"
	taskService = "containerd.task.v3.Task"

	// exitUnknown is the code of what ended with its shim.
	exitUnknown = 255
	// stopMargin is what a stop may take beyond the time that it was given.
	stopMargin = 10 * time.Second
)

// Client speaks to one shim.
type Client struct {
	*Tasks
	dir     bundle.Dir
	id      string
	process *bundle.Handle
	// watch ends when the shim or the client has; died is closed in the first case.
	watch  sync.WaitGroup
	cancel context.CancelFunc
	died   chan struct{}
	closed <-chan struct{} // by Close
}

// connect dials the shim that holds the bundle.
func connect(dir bundle.Dir, id string) (*Client, error) {
	conn, err := net.Dial("unix", dir.ShimSocket())
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w: %w", err, errdefs.ErrUnavailable)
	}
	process, err := openShim(dir)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		Tasks: newTasks(conn), dir: dir, process: process, cancel: cancel, died: make(chan struct{}), closed: ctx.Done(),
	}
	c.name(id)
	c.watch.Go(func() {
		if process.Wait(ctx) == nil {
			close(c.died)
		}
	})
	return c, nil
}

// name says whose shim it is.
func (c *Client) name(id string) { c.id, c.owner = id, "sandbox "+id }

// openShim opens the process that the bundle names as its shim. Unavailable when it has gone.
func openShim(dir bundle.Dir) (*bundle.Handle, error) {
	record, err := dir.ReadShim()
	if err != nil {
		return nil, err
	}
	process, err := record.Process.Open()
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("the shim has gone: %w: %w", err, errdefs.ErrUnavailable)
	}
	return process, err
}

// ID is the sandbox's.
func (c *Client) ID() string { return c.id }

// Done is closed when the shim has died. It stays open after Close.
func (c *Client) Done() <-chan struct{} { return c.died }

// Close drops the connection. The shim lives on.
func (c *Client) Close() error {
	c.cancel()
	err := c.rpc.Close()
	c.watch.Wait()
	c.process.Close()
	return err
}

// apart makes a call on a connection of its own, so that it ends in the shim too when ctx does: ttrpc has no word for a caller
// that has given up, but what a server does for a connection ends when that is closed.
func (c *Client) apart(ctx context.Context, call func(*Tasks) error) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.dir.ShimSocket())
	switch {
	case ctx.Err() != nil && err != nil:
		return fmt.Errorf("%s: connect to shim: %w", c.owner, context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("%s: connect to shim: %w: %w", c.owner, err, errdefs.ErrUnavailable)
	}
	t := newTasks(conn)
	t.owner = c.owner
	err = call(t)
	// The error is of a connection that is not needed any more.
	_ = t.rpc.Close()
	return err
}

// newTasks speaks to a shim of ours.
func newTasks(conn net.Conn) *Tasks {
	return &Tasks{rpc: ttrpc.NewClient(conn, ttrpc.WithUnaryClientInterceptor(stepsrpc.Client)), service: taskService}
}

// Info says what the shim and its VM are.
func (c *Client) Info(ctx context.Context) (*shimv1.InfoResponse, error) {
	var answer shimv1.InfoResponse
	return &answer, c.call(ctx, shimService, "Info", &shimv1.InfoRequest{}, &answer)
}

// WaitSandbox blocks until the sandbox is over, or its shim. The error is only ctx's or the connection's.
func (c *Client) WaitSandbox(ctx context.Context) (task.Exit, error) {
	var answer sandboxv1.WaitSandboxResponse
	err := c.call(ctx, sandboxv1.Service, "WaitSandbox", &sandboxv1.WaitSandboxRequest{SandboxId: c.id}, &answer)
	if Gone(err) {
		return c.shimExit(ctx)
	} else if err != nil {
		return task.Exit{}, err
	}
	exit := task.Exit{Code: answer.ExitStatus, At: answer.ExitedAt.AsTime()}
	info, err := c.Info(ctx)
	if err != nil {
		// The shim may end right behind its sandbox.
		exit.Reason = "the sandbox ended"
		return exit, nil
	}
	exit.Reason = info.Vm.GetExit()
	return exit, nil
}

// shimExit is the exit of everything in a shim whose connection has broken. A broken connection to a shim that lives
// is reported as what it is.
func (c *Client) shimExit(ctx context.Context) (task.Exit, error) {
	bounded, cancel := context.WithTimeout(ctx, stopMargin)
	defer cancel()
	select {
	case <-c.died:
		return task.Exit{Code: exitUnknown, At: time.Now(), Reason: "the shim ended unexpectedly, and the virtual machine with it"}, nil
	case <-c.closed:
		return task.Exit{}, fmt.Errorf("sandbox %s: the client was closed: %w", c.id, errdefs.ErrUnavailable)
	case <-bounded.Done():
		if ctx.Err() != nil {
			return task.Exit{}, ctx.Err()
		}
		return task.Exit{}, fmt.Errorf("sandbox %s: the connection to the shim is lost: %w", c.id, errdefs.ErrUnavailable)
	}
}

// Stop takes the VM down within timeout, politely if it can, ends the shim and removes everything but the bundle's
// directory. It is nil for a shim that has gone already. The client is of no use afterwards but for Close.
func (c *Client) Stop(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout+stopMargin)
	defer cancel()
	seconds := uint32(max(timeout/time.Second, 1))
	err := c.call(ctx, sandboxv1.Service, "StopSandbox", &sandboxv1.StopSandboxRequest{SandboxId: c.id, TimeoutSecs: seconds}, &sandboxv1.StopSandboxResponse{})
	if err == nil {
		err = c.call(ctx, sandboxv1.Service, "ShutdownSandbox", &sandboxv1.ShutdownSandboxRequest{SandboxId: c.id}, &sandboxv1.ShutdownSandboxResponse{})
	}
	if err == nil || Gone(err) {
		select {
		case <-c.died:
		case <-ctx.Done():
		}
	}
	// Whether the shim went by itself or not: after this nothing is left.
	return c.Kill(context.WithoutCancel(ctx))
}

// Kill ends shim, VM and whatever else is in the pod's cgroup, and removes all but the bundle's directory.
func (c *Client) Kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopMargin)
	defer cancel()
	return c.dir.Cleanup(ctx)
}
