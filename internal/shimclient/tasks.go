package shimclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
)

// Types of the values that containerd's protocol has as JSON.
const (
	processType   = "types.containerd.io/opencontainers/runtime-spec/1/Process"
	resourcesType = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources"
)

var errShimEnded = errors.New("the shim has ended")

// Tasks is containerd's task service of a shim, whosever it is.
type Tasks struct {
	rpc *ttrpc.Client
	// service is its name, which has the version in it; owner is whom errors name.
	service, owner string
}

// Gone tells whether an error means that the shim is dead.
func Gone(err error) bool { return errors.Is(err, errShimEnded) }

// call makes one call and gives its error the classes of errdefs.
func (t *Tasks) call(ctx context.Context, service, method string, req, answer proto.Message) (err error) {
	ctx, end := span.Call(ctx, "shim "+method)
	defer func() { end(err) }()
	err = t.rpc.Call(ttrpc.WithMetadata(ctx, ttrpc.MD{namespaceHeader: {namespace}}), service, method, req, answer)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ttrpc.ErrClosed):
		return fmt.Errorf("%s: %w: %w", t.owner, errShimEnded, errdefs.ErrUnavailable)
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %s: %w", t.owner, method, context.Cause(ctx))
	}
	return errgrpc.ToNative(err)
}

// do makes a call of the task service.
func (t *Tasks) do(ctx context.Context, method string, req, answer proto.Message) error {
	return t.call(ctx, t.service, method, req, answer)
}

// Start returns the pid: on the host where there is one, else in the guest.
func (t *Tasks) Start(ctx context.Context, id task.ID) (uint32, error) {
	var answer taskapi.StartResponse
	err := t.do(ctx, "Start", &taskapi.StartRequest{ID: id.Container, ExecID: id.Exec}, &answer)
	return answer.Pid, err
}

// Signal sends a signal. NotFound for a process that has ended.
func (t *Tasks) Signal(ctx context.Context, id task.ID, signal uint32, all bool) error {
	return t.do(ctx, "Kill", &taskapi.KillRequest{ID: id.Container, ExecID: id.Exec, Signal: signal, All: all}, &emptypb.Empty{})
}

// Delete forgets a process.
func (t *Tasks) Delete(ctx context.Context, id task.ID) error {
	return t.do(ctx, "Delete", &taskapi.DeleteRequest{ID: id.Container, ExecID: id.Exec}, &taskapi.DeleteResponse{})
}

// Resize sets the size of a terminal.
func (t *Tasks) Resize(ctx context.Context, id task.ID, width, height uint32) error {
	return t.do(ctx, "ResizePty", &taskapi.ResizePtyRequest{ID: id.Container, ExecID: id.Exec, Width: width, Height: height}, &emptypb.Empty{})
}

// Update changes the limits of a container.
func (t *Tasks) Update(ctx context.Context, container string, resources *specs.LinuxResources) error {
	data, err := json.Marshal(resources)
	if err != nil {
		return fmt.Errorf("update container %s: %w", container, err)
	}
	return t.do(ctx, "Update", &taskapi.UpdateTaskRequest{
		ID: container, Resources: &anypb.Any{TypeUrl: resourcesType, Value: data},
	}, &emptypb.Empty{})
}

// Pids lists the processes of a container by their pids, as Start has them.
func (t *Tasks) Pids(ctx context.Context, container string) ([]uint32, error) {
	var answer taskapi.PidsResponse
	if err := t.do(ctx, "Pids", &taskapi.PidsRequest{ID: container}, &answer); err != nil {
		return nil, err
	}
	var pids []uint32
	for _, p := range answer.Processes {
		pids = append(pids, p.Pid)
	}
	return pids, nil
}

// Pause freezes a container, Resume thaws it.
func (t *Tasks) Pause(ctx context.Context, container string) error {
	return t.do(ctx, "Pause", &taskapi.PauseRequest{ID: container}, &emptypb.Empty{})
}

// Resume thaws a container.
func (t *Tasks) Resume(ctx context.Context, container string) error {
	return t.do(ctx, "Resume", &taskapi.ResumeRequest{ID: container}, &emptypb.Empty{})
}

// State is what a container is doing: created, running, paused, stopped or unknown.
func (t *Tasks) State(ctx context.Context, id task.ID) (string, error) {
	var answer taskapi.StateResponse
	err := t.do(ctx, "State", &taskapi.StateRequest{ID: id.Container, ExecID: id.Exec}, &answer)
	return strings.ToLower(answer.Status.String()), err
}
