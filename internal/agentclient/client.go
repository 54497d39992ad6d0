package agentclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/steps"
	stepsrpc "github.com/pistis-run/pistis/internal/steps/rpc"
	"github.com/pistis-run/pistis/internal/task"
)

// DefaultTimeout bounds a call that has no deadline of its own.
const DefaultTimeout = time.Minute

// DialFunc opens a stream to a port of the guest.
type DialFunc func(ctx context.Context, port uint32) (net.Conn, error)

// Info is what the agent said of itself.
type Info struct {
	Version      uint32
	Features     []string
	AgentVersion string
	// Kernel is the guest's /proc/version.
	Kernel string
	// Uptime of the kernel when the agent was ready.
	Uptime time.Duration
}

// Client speaks to one agent.
type Client struct {
	dial    DialFunc
	rpc     *ttrpc.Client
	agent   agentv1.AgentService
	info    Info
	timeout time.Duration
	done    chan struct{}
	closing sync.Once
}

// Connect dials the agent and agrees on the protocol. ctx bounds that alone. timeout bounds later calls without a
// deadline of their own; 0 means DefaultTimeout.
func Connect(ctx context.Context, dial DialFunc, timeout time.Duration) (*Client, error) {
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	conn, err := dial(ctx, agentv1.ControlPort)
	if err != nil {
		return nil, fmt.Errorf("connect to agent: %w", err)
	}
	c := &Client{dial: dial, timeout: timeout, done: make(chan struct{})}
	c.rpc = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(c.done) }), ttrpc.WithUnaryClientInterceptor(stepsrpc.Client))
	c.agent = agentv1.NewAgentClient(c.rpc)
	if err := c.hello(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) hello(ctx context.Context) error {
	r, err := c.agent.Hello(ctx, &agentv1.HelloRequest{Version: agentv1.ProtocolVersion})
	if err != nil {
		return fmt.Errorf("connect to agent: hello: %w", native(err))
	}
	if r.Version != agentv1.ProtocolVersion {
		return fmt.Errorf("connect to agent: the agent in the guest speaks protocol version %d (agent %s) and this host %d: "+
			"build the guest again with the installed version: %w",
			r.Version, clean(r.AgentVersion, maxName), agentv1.ProtocolVersion, errdefs.ErrFailedPrecondition)
	}
	c.info = Info{
		Version:      r.Version,
		Features:     cleanList(r.Features, maxFeatures, maxName),
		AgentVersion: clean(r.AgentVersion, maxName),
		Kernel:       clean(r.Kernel, maxText),
		Uptime:       time.Duration(min(r.UptimeNs, uint64(maxUptime))),
	}
	return nil
}

// needs is FailedPrecondition for an agent that lacks a feature, which is what a guest of an older version has.
func (c *Client) needs(feature, what string) error {
	if slices.Contains(c.info.Features, feature) {
		return nil
	}
	return fmt.Errorf("the agent in the guest (%s) is too old for %s: build the guest again with the installed version, and make the pod anew: %w",
		c.info.AgentVersion, what, errdefs.ErrFailedPrecondition)
}

// Info is what Hello brought.
func (c *Client) Info() Info { return c.info }

// Has says whether the agent can do something beyond the first version of the contract: one of its Feature constants.
func (c *Client) Has(feature string) bool { return slices.Contains(c.info.Features, feature) }

// Done is closed when the control connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close closes the control connection. It is idempotent. Streams stay.
func (c *Client) Close() error {
	var err error
	c.closing.Do(func() { err = c.rpc.Close() })
	return err
}

// call makes one bounded call. What the guest refuses it explains itself; what names the call where it does not answer.
func call[Q, R any](c *Client, ctx context.Context, what string, f func(context.Context, Q) (R, error), req Q) (R, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout,
			fmt.Errorf("no answer within %s: %w", c.timeout, context.DeadlineExceeded))
		defer cancel()
	}
	ctx, end := steps.Start(ctx, "guest "+what)
	defer end()
	r, err := f(ctx, req)
	if err != nil {
		var none R
		return none, guestFailure(ctx, what, err)
	}
	return r, nil
}

// ConfigureSandbox makes the guest the pod's.
func (c *Client) ConfigureSandbox(ctx context.Context, req *agentv1.ConfigureSandboxRequest) error {
	_, err := call(c, ctx, "configure", c.agent.ConfigureSandbox, req)
	return err
}

// SetClock sets the guest's wall clock.
func (c *Client) SetClock(ctx context.Context, req *agentv1.SetClockRequest) error {
	_, err := call(c, ctx, "set clock", c.agent.SetClock, req)
	return err
}

// AdjustClock has the guest make up for a difference without a jump, none where it is 0, and returns what its clock shows.
func (c *Client) AdjustClock(ctx context.Context, by time.Duration) (time.Time, error) {
	req := &agentv1.AdjustClockRequest{}
	if by != 0 {
		req.By = durationpb.New(by)
	}
	r, err := call(c, ctx, "adjust clock", c.agent.AdjustClock, req)
	if err == nil && !r.Clock.IsValid() {
		err = hostile("adjust clock", "no valid time")
	}
	return r.GetClock().AsTime(), err
}

// CreateContainer returns the pid in the guest and the resolved user.
func (c *Client) CreateContainer(ctx context.Context, req *agentv1.CreateContainerRequest) (uint32, task.User, error) {
	if req.PidNamespace != nil {
		if err := c.needs(agentv1.FeaturePIDNamespaces, "PID namespaces of other containers"); err != nil {
			return 0, task.User{}, fmt.Errorf("create container: %w", err)
		}
	}
	if len(req.Memory) > 0 {
		if err := c.needs(agentv1.FeatureMemoryVolumes, "volumes in memory"); err != nil {
			return 0, task.User{}, fmt.Errorf("create container: %w", err)
		}
	}
	if len(req.ShareParts) > 0 {
		if err := c.needs(agentv1.FeatureShareParts, "parts of volumes"); err != nil {
			return 0, task.User{}, fmt.Errorf("create container: %w", err)
		}
	}
	if len(req.Devices) > 0 {
		if err := c.needs(agentv1.FeatureBlockDevices, "block devices"); err != nil {
			return 0, task.User{}, fmt.Errorf("create container: %w", err)
		}
	}
	r, err := call(c, ctx, "create container", c.agent.CreateContainer, req)
	if err != nil {
		return 0, task.User{}, err
	}
	if n := len(r.User.GetAdditionalGids()); n > maxGroups {
		return 0, task.User{}, hostile("create container", "%d groups, at most %d are possible", n, maxGroups)
	}
	return r.Pid, task.User{UID: r.User.GetUid(), GID: r.User.GetGid(), AdditionalGIDs: r.User.GetAdditionalGids()}, nil
}

// Exec makes a further process in a container.
func (c *Client) Exec(ctx context.Context, req *agentv1.ExecRequest) error {
	_, err := call(c, ctx, "create exec", c.agent.Exec, req)
	return err
}

// Start returns the pid in the guest.
func (c *Client) Start(ctx context.Context, id task.ID) (uint32, error) {
	r, err := call(c, ctx, "start", c.agent.Start, &agentv1.StartRequest{Container: id.Container, Exec: id.Exec})
	return r.GetPid(), err
}

// Signal sends a signal.
func (c *Client) Signal(ctx context.Context, id task.ID, signal uint32, all bool) error {
	_, err := call(c, ctx, "signal", c.agent.Signal,
		&agentv1.SignalRequest{Container: id.Container, Exec: id.Exec, Signal: signal, All: all})
	return err
}

// Wait blocks until the process has ended; only ctx and the connection bound it. The time is the host's: the
// guest's clock is the guest's affair.
func (c *Client) Wait(ctx context.Context, id task.ID) (task.Exit, error) {
	r, err := c.agent.Wait(ctx, &agentv1.WaitRequest{Container: id.Container, Exec: id.Exec})
	if err != nil {
		return task.Exit{}, guestFailure(ctx, "wait", err)
	}
	return task.Exit{Code: min(r.Code, 255), At: time.Now(), OOMKilled: r.OomKilled, Reason: clean(r.Reason, maxText)}, nil
}

// Delete returns the disks that no container uses any more.
func (c *Client) Delete(ctx context.Context, id task.ID) ([]*agentv1.DiskAddress, error) {
	r, err := call(c, ctx, "delete", c.agent.Delete, &agentv1.DeleteRequest{Container: id.Container, Exec: id.Exec})
	if err != nil {
		return nil, err
	}
	if n := len(r.Disks); n > maxDisks {
		return nil, hostile("delete", "%d disks", n)
	}
	return r.Disks, nil
}

// RemoveShare unmounts what OpenShare mounted. What the guest does not know is no error.
func (c *Client) RemoveShare(ctx context.Context, id string) error {
	_, err := call(c, ctx, "unmount share in guest: "+id, c.agent.RemoveShare, &agentv1.RemoveShareRequest{Id: id})
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// ResizeTerminal sets the size of a terminal, in characters.
func (c *Client) ResizeTerminal(ctx context.Context, id task.ID, width, height uint32) error {
	_, err := call(c, ctx, "resize terminal", c.agent.ResizeTerminal,
		&agentv1.ResizeTerminalRequest{Container: id.Container, Exec: id.Exec, Width: width, Height: height})
	return err
}

// Pids lists the processes of a container, by their pids in the guest.
func (c *Client) Pids(ctx context.Context, container string) ([]*agentv1.Pid, error) {
	r, err := call(c, ctx, "list processes", c.agent.Pids, &agentv1.PidsRequest{Container: container})
	if err != nil {
		return nil, err
	}
	for _, p := range r.Pids {
		p.Exec = clean(p.Exec, maxName)
	}
	return r.Pids, nil
}

// Pause and Resume freeze and thaw a container.
func (c *Client) Pause(ctx context.Context, container string) error {
	_, err := call(c, ctx, "pause", c.agent.Pause, &agentv1.ContainerRequest{Container: container})
	return err
}

// Resume thaws a container.
func (c *Client) Resume(ctx context.Context, container string) error {
	_, err := call(c, ctx, "resume", c.agent.Resume, &agentv1.ContainerRequest{Container: container})
	return err
}

// Update changes a container's limits; resources is the OCI linux.resources in JSON.
func (c *Client) Update(ctx context.Context, container string, resources []byte) error {
	_, err := call(c, ctx, "update", c.agent.Update, &agentv1.UpdateRequest{Container: container, Resources: resources})
	return err
}

// Resize has the guest use so many processors, and returns how many it uses and how many bytes of memory it has. Both are
// its word. It is for agents with FeatureResize.
func (c *Client) Resize(ctx context.Context, vcpus int) (used int, memory uint64, err error) {
	r, err := call(c, ctx, "resize", c.agent.Resize, &agentv1.ResizeRequest{Vcpus: uint32(vcpus)})
	if err != nil {
		return 0, 0, err
	}
	return int(min(r.Vcpus, uint32(vcpus))), r.MemoryBytes, nil
}

// Shutdown tells the guest to power off. That its answer was lost with the guest is no error.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := call(c, ctx, "shut down", c.agent.Shutdown, &agentv1.Empty{})
	if errors.Is(err, ttrpc.ErrClosed) {
		return nil
	}
	return err
}
