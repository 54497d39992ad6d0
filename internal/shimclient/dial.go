package shimclient

import (
	"context"
	"fmt"
	"net"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pistis-run/pistis/internal/task"
)

// Shim is a connection to a shim that is any containerd shim and no more: its task service. Closing it leaves the shim.
type Shim struct {
	*Tasks
	done chan struct{}
}

// Dial connects to a shim where its answer says. owner is whom errors name. Unavailable when the shim has gone.
func Dial(ctx context.Context, at Answer, owner string) (*Shim, error) {
	path, ok := strings.CutPrefix(at.Address, "unix://")
	if !ok || at.Protocol != "ttrpc" {
		return nil, fmt.Errorf("%s: the shim speaks %s at %s, and only ttrpc on a Unix socket is spoken here: %w", owner, at.Protocol, at.Address, errdefs.ErrNotImplemented)
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s: connect to shim: %w: %w", owner, err, errdefs.ErrUnavailable)
	}
	s := &Shim{done: make(chan struct{})}
	s.Tasks = &Tasks{
		rpc:     ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(s.done) })),
		service: fmt.Sprintf("containerd.task.v%d.Task", at.Version), owner: owner,
	}
	return s, nil
}

// Done is closed when the shim has ended, or the connection was closed here.
func (s *Shim) Done() <-chan struct{} { return s.done }

// Close drops the connection.
func (s *Shim) Close() error { return s.rpc.Close() }

// FIFOs are the paths of a process's stdio; empty is /dev/null.
type FIFOs struct{ Stdin, Stdout, Stderr string }

// Create makes a container of its bundle, without starting it.
func (s *Shim) Create(ctx context.Context, id, bundle string, terminal bool, stdio FIFOs, options *anypb.Any) (pid uint32, err error) {
	var answer taskapi.CreateTaskResponse
	err = s.do(ctx, "Create", &taskapi.CreateTaskRequest{
		ID: id, Bundle: bundle, Terminal: terminal, Stdin: stdio.Stdin, Stdout: stdio.Stdout, Stderr: stdio.Stderr, Options: options,
	}, &answer)
	return answer.Pid, err
}

// Exec makes a further process, without starting it.
func (s *Shim) Exec(ctx context.Context, req task.ExecRequest, stdio FIFOs) error {
	return s.do(ctx, "Exec", &taskapi.ExecProcessRequest{
		ID: req.ID.Container, ExecID: req.ID.Exec, Terminal: req.Terminal, Stdin: stdio.Stdin, Stdout: stdio.Stdout, Stderr: stdio.Stderr,
		Spec: &anypb.Any{TypeUrl: processType, Value: req.Process},
	}, &emptypb.Empty{})
}

// Wait blocks until the process has ended. Its output may still be under way.
func (s *Shim) Wait(ctx context.Context, id task.ID) (task.Exit, error) {
	var answer taskapi.WaitResponse
	if err := s.do(ctx, "Wait", &taskapi.WaitRequest{ID: id.Container, ExecID: id.Exec}, &answer); err != nil {
		return task.Exit{}, err
	}
	return task.Exit{Code: answer.ExitStatus, At: answer.ExitedAt.AsTime()}, nil
}

// CloseInput closes what the shim holds open of a process's input, which ends then with its last writer.
func (s *Shim) CloseInput(ctx context.Context, id task.ID) error {
	return s.do(ctx, "CloseIO", &taskapi.CloseIORequest{ID: id.Container, ExecID: id.Exec, Stdin: true}, &emptypb.Empty{})
}

// Metrics are a container's, in a type of the shim's choice.
func (s *Shim) Metrics(ctx context.Context, container string) (*anypb.Any, error) {
	var answer taskapi.StatsResponse
	err := s.do(ctx, "Stats", &taskapi.StatsRequest{ID: container}, &answer)
	return answer.Stats, err
}

// PID is the process of a container's first process, on the host. NotFound where the shim has no such container.
func (s *Shim) PID(ctx context.Context, container string) (uint32, error) {
	var answer taskapi.StateResponse
	err := s.do(ctx, "State", &taskapi.StateRequest{ID: container}, &answer)
	return answer.Pid, err
}

// Shutdown ends the shim, unless it has containers.
func (s *Shim) Shutdown(ctx context.Context, id string) error {
	err := s.do(ctx, "Shutdown", &taskapi.ShutdownRequest{ID: id}, &emptypb.Empty{})
	if Gone(err) {
		return nil // it was faster than its answer
	}
	return err
}
