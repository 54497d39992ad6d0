package cri

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

// maxExecOutput is how many bytes of both streams together fit into the one message that the kubelet takes.
const maxExecOutput = MaxMessageSize - 64<<10

// maxExecTimeout is the longest timeout, in seconds, that an ExecSync can have: a day.
const maxExecTimeout = 24 * 60 * 60

// containerProcesses runs further processes in a container and joins its own.
type containerProcesses interface {
	// ExecSync gives up with DeadlineExceeded after timeout; 0 is none. It bounds both outputs.
	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error)
	Exec(ctx context.Context, id string, cmd []string, tty bool, stdio task.Stdio, resize <-chan container.Size) (code int32, err error)
	Attach(ctx context.Context, id string, tty bool, stdio task.Stdio, resize <-chan container.Size) error
}

// sandboxTasks reaches into a sandbox that is ready.
type sandboxTasks interface {
	Tasks(ctx context.Context, id string) (task.Service, error)
	Stats(ctx context.Context, id string, containers ...string) (task.Stats, error)
}

// streams hands out the URLs under which streams are served.
type streams interface {
	GetExec(req *runtime.ExecRequest) (*runtime.ExecResponse, error)
	GetAttach(req *runtime.AttachRequest) (*runtime.AttachResponse, error)
	GetPortForward(req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error)
}

// processCalls are the calls about processes and streams.
type processCalls struct {
	processes  containerProcesses
	containers containerReader
	sandboxes  sandboxReader
	streams    streams
}

// ExecSync runs a command and answers with its output and exit code.
func (c *processCalls) ExecSync(ctx context.Context, req *runtime.ExecSyncRequest) (*runtime.ExecSyncResponse, error) {
	id, err := c.running(ctx, req.ContainerId)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if err := validateCommand(req.Cmd); err != nil {
		return nil, fmt.Errorf("exec: container %s: %w", id, err)
	}
	if req.Timeout < 0 {
		return nil, fmt.Errorf("exec: container %s: %w", id, invalid("timeout of %d seconds is negative", req.Timeout))
	}
	timeout := time.Duration(min(req.Timeout, maxExecTimeout)) * time.Second
	stdout, stderr, code, err := c.processes.ExecSync(ctx, id, req.Cmd, timeout)
	switch {
	case errors.Is(err, context.DeadlineExceeded) && timeout > 0 && ctx.Err() == nil:
		return nil, fmt.Errorf("exec: container %s: %q did not end within %s: %w", id, req.Cmd[0], timeout, err)
	case err != nil:
		return nil, fmt.Errorf("exec: container %s: %w", id, err)
	}
	stdout, stderr = fitTogether(stdout, stderr, maxExecOutput)
	return &runtime.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// fitTogether cuts what is over limit, from the longer one first.
func fitTogether(a, b []byte, limit int) ([]byte, []byte) {
	if over := len(a) + len(b) - limit; over > 0 {
		if len(a) >= len(b) {
			cut := max(len(a)-over, limit/2)
			return a[:cut], b[:min(len(b), limit-cut)]
		}
		b, a = fitTogether(b, a, limit)
	}
	return a, b
}

// Exec answers with the URL of a stream that runs a command.
func (c *processCalls) Exec(ctx context.Context, req *runtime.ExecRequest) (*runtime.ExecResponse, error) {
	if err := validateStreams(req.Stdin, req.Stdout, req.Stderr, req.Tty); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	id, err := c.running(ctx, req.ContainerId)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if err := validateCommand(req.Cmd); err != nil {
		return nil, fmt.Errorf("exec: container %s: %w", id, err)
	}
	return c.streams.GetExec(&runtime.ExecRequest{
		ContainerId: id, Cmd: req.Cmd, Tty: req.Tty, Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr,
	})
}

// Attach answers with the URL of a stream that joins the container's own process.
func (c *processCalls) Attach(ctx context.Context, req *runtime.AttachRequest) (*runtime.AttachResponse, error) {
	if err := validateStreams(req.Stdin, req.Stdout, req.Stderr, req.Tty); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	id, err := c.attachable(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return c.streams.GetAttach(&runtime.AttachRequest{
		ContainerId: id, Tty: req.Tty, Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr,
	})
}

// attachable lets created containers through too: who attaches before the start misses nothing.
func (c *processCalls) attachable(ctx context.Context, req *runtime.AttachRequest) (string, error) {
	if err := requireID("container", req.ContainerId); err != nil {
		return "", err
	}
	s, err := c.containers.Status(ctx, req.ContainerId)
	if err != nil {
		return "", fmt.Errorf("container %s: %w", req.ContainerId, err)
	}
	switch {
	case s.State != container.Running && s.State != container.Created && s.State != container.Starting:
		return "", fmt.Errorf("container %s is %s: %w", s.ID, s.State, errdefs.ErrFailedPrecondition)
	case req.Tty != s.Config.TTY:
		return "", invalid("container %s was made with tty %t, and tty %t is asked for", s.ID, s.Config.TTY, req.Tty)
	case req.Stdin && !s.Config.Stdin:
		return "", invalid("container %s was made without stdin", s.ID)
	}
	return s.ID, nil
}

// PortForward answers with the URL of a stream that carries connections to ports of the pod's localhost.
func (c *processCalls) PortForward(ctx context.Context, req *runtime.PortForwardRequest) (*runtime.PortForwardResponse, error) {
	if err := requireID("pod sandbox", req.PodSandboxId); err != nil {
		return nil, fmt.Errorf("port-forward: %w", err)
	}
	for _, port := range req.Port {
		if port < 1 || port > 65535 {
			return nil, fmt.Errorf("port-forward: %w", invalid("port %d is not between 1 and 65535", port))
		}
	}
	s, err := c.sandboxes.Status(ctx, req.PodSandboxId)
	if err != nil {
		return nil, fmt.Errorf("port-forward: pod %s: %w", req.PodSandboxId, err)
	}
	if s.State != sandbox.Ready {
		return nil, fmt.Errorf("port-forward: pod %s is %s: %w", s.ID, s.State, errdefs.ErrFailedPrecondition)
	}
	return c.streams.GetPortForward(&runtime.PortForwardRequest{PodSandboxId: s.ID, Port: req.Port})
}

// running returns the whole id of a container that runs.
func (c *processCalls) running(ctx context.Context, id string) (string, error) {
	if err := requireID("container", id); err != nil {
		return "", err
	}
	s, err := c.containers.Status(ctx, id)
	if err != nil {
		return "", fmt.Errorf("container %s: %w", id, err)
	}
	if s.State != container.Running {
		return "", fmt.Errorf("container %s is %s, not running: %w", s.ID, s.State, errdefs.ErrFailedPrecondition)
	}
	return s.ID, nil
}

func validateCommand(cmd []string) error {
	if len(cmd) == 0 || cmd[0] == "" {
		return invalid("the request has no command")
	}
	for _, word := range cmd {
		if hasNUL(word) {
			return invalid("the command has a NUL byte in it: %q", word)
		}
	}
	return nil
}

func validateStreams(stdin, stdout, stderr, tty bool) error {
	switch {
	case !stdin && !stdout && !stderr:
		return invalid("one of stdin, stdout and stderr must be asked for")
	case tty && stderr:
		return invalid("a terminal has no stderr of its own: ask for tty or for stderr")
	}
	return nil
}
