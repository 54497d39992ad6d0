package streaming

import (
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/task"
)

// processes runs processes in containers and joins those that run.
type processes interface {
	Exec(ctx context.Context, id string, cmd []string, tty bool, stdio task.Stdio, resize <-chan container.Size) (code int32, err error)
	Attach(ctx context.Context, id string, tty bool, stdio task.Stdio, resize <-chan container.Size) error
}

// sandboxes reaches into a sandbox.
type sandboxes interface {
	Tasks(ctx context.Context, id string) (task.Service, error)
}

// engine is what streams lead to, as the streaming library wants to see it: its Executor, Attacher and PortForwarder.
// Their names of pods are not used, but for port-forward, where it is the sandbox's id.
type engine struct {
	processes processes
	sandboxes sandboxes
}

// exec runs a command. A code other than 0 is an error of the type that is sent to the client as such.
func (c engine) exec(ctx context.Context, id string, cmd []string, tty bool, stdio task.Stdio, resize <-chan container.Size) error {
	code, err := c.processes.Exec(ctx, id, cmd, tty, stdio, resize)
	if err != nil {
		return err
	}
	if code != 0 {
		return exec.CodeExitError{Err: fmt.Errorf("exit code %d", code), Code: int(code)}
	}
	return nil
}

// ExecInContainer runs a command.
func (c engine) ExecInContainer(ctx context.Context, _, _, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	ctx, sizes, stop := forward(ctx, resize)
	defer stop()
	return c.exec(ctx, id, cmd, tty, stdio(in, out, errOut), sizes)
}

// AttachContainer joins a container's own process.
func (c engine) AttachContainer(ctx context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	ctx, sizes, stop := forward(ctx, resize)
	defer stop()
	return c.processes.Attach(ctx, id, tty, stdio(in, out, errOut), sizes)
}

// stdio keeps what is not wanted nil: a nil pointer in an interface would not be.
func stdio(in io.Reader, out, errOut io.WriteCloser) task.Stdio {
	s := task.Stdio{Stdin: in}
	if out != nil {
		s.Stdout = out
	}
	if errOut != nil {
		s.Stderr = errOut
	}
	return s
}

// forward converts sizes until stop is called, which waits for that. The context ends with stop too.
func forward(ctx context.Context, in <-chan remotecommand.TerminalSize) (context.Context, <-chan container.Size, func()) {
	ctx, cancel := context.WithCancel(ctx)
	if in == nil {
		return ctx, nil, cancel
	}
	out := make(chan container.Size)
	var forwarder sync.WaitGroup
	forwarder.Go(func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case size, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- container.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			}
		}
	})
	return ctx, out, func() {
		cancel()
		forwarder.Wait()
	}
}

// PortForward connects the stream with a port of the sandbox's localhost, dialled inside.
func (c engine) PortForward(ctx context.Context, id, _ string, port int32, stream io.ReadWriteCloser) error {
	tasks, err := c.sandboxes.Tasks(ctx, id)
	if err != nil {
		return fmt.Errorf("port-forward: pod %s: %w", id, err)
	}
	dialer, ok := tasks.(task.Dialer)
	if !ok {
		return fmt.Errorf("port-forward: pod %s: its runtime cannot connect to ports: %w", id, errdefs.ErrNotImplemented)
	}
	conn, err := dialer.Dial(ctx, "tcp", net.JoinHostPort("localhost", strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("port-forward: pod %s: port %d: %w", id, port, err)
	}
	return join(ctx, stream, conn)
}
