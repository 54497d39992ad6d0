package shimclient

import (
	"context"
	"fmt"
	"slices"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/task"
)

// streamed is the stdio of an exec that an attach stream carries.
const streamed = "stream:"

// The Client is a complete view of a sandbox's processes.
var (
	_ task.Service     = (*Client)(nil)
	_ task.Attacher    = (*Client)(nil)
	_ task.Resizer     = (*Client)(nil)
	_ task.LogReopener = (*Client)(nil)
	_ task.Updater     = (*Client)(nil)
	_ task.Statter     = (*Client)(nil)
	_ task.Dialer      = (*Client)(nil)
)

// Create makes a container; the spec is read from the request's bundle.
func (c *Client) Create(ctx context.Context, req task.CreateRequest) (task.User, error) {
	options, err := anypb.New(&shimv1.CreateOptions{
		User: wireUser(req.User), LogPath: req.LogPath, Stdin: req.Stdin, StdinOnce: req.StdinOnce, PidNamespace: wirePID(req.PID),
	})
	if err != nil {
		return task.User{}, err
	}
	if req.PID != (task.PIDNamespace{}) {
		if err := c.needs(ctx, shimv1.FeaturePIDNamespaces, "PID namespaces of other containers"); err != nil {
			return task.User{}, err
		}
	}
	r := &taskapi.CreateTaskRequest{ID: req.ID, Bundle: req.Bundle, Terminal: req.Terminal, Options: options}
	for _, layer := range req.Layers {
		r.Rootfs = append(r.Rootfs, &types.Mount{Type: "ext4", Source: layer, Options: []string{"ro"}})
	}
	if err := c.call(ctx, taskService, "Create", r, &taskapi.CreateTaskResponse{}); err != nil {
		return task.User{}, err
	}
	info, err := c.inspect(ctx, task.ID{Container: req.ID})
	if err != nil {
		return task.User{}, err
	}
	return task.User{UID: info.User.GetUid(), GID: info.User.GetGid(), AdditionalGIDs: info.User.GetAdditionalGids()}, nil
}

// wireUser is nil where nothing was asked for: the spec's numeric user counts then.
func wireUser(u task.UserRequest) *shimv1.UserRequest {
	if u.User == "" && u.GID == nil && len(u.SupplementalGroups) == 0 && !u.Strict {
		return nil
	}
	return &shimv1.UserRequest{User: u.User, Gid: u.GID, SupplementalGroups: u.SupplementalGroups, Strict: u.Strict}
}

// needs is FailedPrecondition for a shim that lacks a feature, as that of a pod which an older daemon made.
func (c *Client) needs(ctx context.Context, feature, what string) error {
	info, err := c.Info(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(info.Features, feature) {
		return fmt.Errorf("sandbox %s was made by an older version (%s), which has no %s: make the pod anew: %w", c.id, info.ShimVersion, what, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func wirePID(n task.PIDNamespace) *shimv1.PIDNamespace {
	switch {
	case n.Container != "":
		return &shimv1.PIDNamespace{Of: &shimv1.PIDNamespace_Container{Container: n.Container}}
	case n.Own:
		return &shimv1.PIDNamespace{Of: &shimv1.PIDNamespace_Own{Own: true}}
	}
	return nil
}

func (c *Client) inspect(ctx context.Context, id task.ID) (*shimv1.InspectResponse, error) {
	var answer shimv1.InspectResponse
	return &answer, c.call(ctx, shimService, "Inspect", &shimv1.InspectRequest{Container: id.Container, Exec: id.Exec}, &answer)
}

// Exec makes a further process. Start of it waits until Attach has joined, where stdio was asked for.
func (c *Client) Exec(ctx context.Context, req task.ExecRequest) error {
	path := func(wanted bool) string {
		if wanted {
			return streamed
		}
		return ""
	}
	return c.call(ctx, taskService, "Exec", &taskapi.ExecProcessRequest{
		ID: req.ID.Container, ExecID: req.ID.Exec, Terminal: req.Terminal,
		Stdin: path(req.Stdin), Stdout: path(req.Stdout), Stderr: path(req.Stderr),
		Spec: &anypb.Any{TypeUrl: processType, Value: req.Process},
	}, &emptypb.Empty{})
}

// Wait blocks until the process has ended and its output was drained. When the shim ends, so does the process.
func (c *Client) Wait(ctx context.Context, id task.ID) (task.Exit, error) {
	var answer taskapi.WaitResponse
	err := c.call(ctx, taskService, "Wait", &taskapi.WaitRequest{ID: id.Container, ExecID: id.Exec}, &answer)
	if Gone(err) {
		return c.shimExit(ctx)
	} else if err != nil {
		return task.Exit{}, err
	}
	exit := task.Exit{Code: answer.ExitStatus, At: answer.ExitedAt.AsTime()}
	info, err := c.inspect(ctx, id)
	switch {
	case err == nil:
		exit.OOMKilled, exit.Reason = info.OomKilled, info.Reason
	case Gone(err): // the shim ended right behind it
		if exit.Code == exitUnknown {
			exit.Reason = "the sandbox ended, and its shim with it"
		}
	case errdefs.IsNotFound(err): // deleted by somebody
	case errdefs.IsNotImplemented(err): // a shim that has no more to say than the code
	default:
		return task.Exit{}, err
	}
	return exit, nil
}

// ReopenLog opens a container's log anew.
func (c *Client) ReopenLog(ctx context.Context, container string) error {
	return c.call(ctx, shimService, "ReopenLog", &shimv1.ReopenLogRequest{Container: container}, &shimv1.Empty{})
}

// ResizeVM gives the VM processors and memory, or takes them. A guest may take long for that: when ctx ends, the change does, and is
// undone.
func (c *Client) ResizeVM(ctx context.Context, vcpus uint32, memoryBytes uint64) error {
	return c.apart(ctx, func(t *Tasks) error {
		return t.call(ctx, shimService, "Resize", &shimv1.ResizeRequest{Vcpus: vcpus, MemoryBytes: memoryBytes}, &shimv1.Empty{})
	})
}

// Update changes the limits of a container, for which the VM may have to change its size: see ResizeVM.
func (c *Client) Update(ctx context.Context, container string, resources *specs.LinuxResources) error {
	return c.apart(ctx, func(t *Tasks) error { return t.Update(ctx, container, resources) })
}
