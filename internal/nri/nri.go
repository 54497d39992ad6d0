package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/version"
)

// Options of the interface; all are needed.
type Options struct {
	// Socket is where plugins connect, PluginDir has those that are started, ConfigDir their configurations.
	Socket, PluginDir, ConfigDir string
	Log                          *slog.Logger
}

// sandboxes are the pods that plugins learn of.
type sandboxes interface {
	List(ctx context.Context) []sandbox.Status
}

// containers are what plugins learn of and change.
type containers interface {
	List(ctx context.Context) []container.Status
	Spec(id string) (*specs.Spec, error)
	SetLimits(ctx context.Context, id string, resources *specs.LinuxResources) error
}

// Plugins are those that are connected.
type Plugins struct {
	nri *adaptation.Adaptation
	log *slog.Logger
	// node is nil until Start: containers that were recovered may end, and tell so, before it.
	node atomic.Pointer[node]
}

// node has what plugins learn of.
type node struct {
	sandboxes  sandboxes
	containers containers
}

var errUnknownMoment = fmt.Errorf("nri: moment is not known: %w", errdefs.ErrInternal)

// applyTimeout bounds the changes that a plugin asks for at once. Each waits for what is being done to its container.
const applyTimeout = 30 * time.Second

// New makes the interface. No plugin is connected before Start.
func New(o Options) (*Plugins, error) {
	p := &Plugins{log: o.Log}
	setLog(o.Log)
	var err error
	p.nri, err = adaptation.New("pistis", version.Version, p.synchronize, p.update,
		adaptation.WithSocketPath(o.Socket), adaptation.WithPluginPath(o.PluginDir), adaptation.WithPluginConfigPath(o.ConfigDir))
	if err != nil {
		return nil, fmt.Errorf("nri: %w", err)
	}
	return p, nil
}

// Start lets plugins in, once pods and containers were recovered.
func (p *Plugins) Start(pods sandboxes, containers containers) error {
	p.node.Store(&node{pods, containers})
	if err := p.nri.Start(); err != nil {
		return fmt.Errorf("nri: %w", err)
	}
	return nil
}

// Close ends the plugins that were started, and the connections of the others.
func (p *Plugins) Close() error {
	p.nri.Stop()
	return nil
}

// Hold keeps plugins that connect waiting, until what is being made is there for them to see. Holds must not be nested. One
// that is connecting is waited for, but no longer than ctx allows.
func (p *Plugins) Hold(ctx context.Context) (release func(), err error) {
	held := make(chan *adaptation.PluginSyncBlock)
	go func() { // ends when the plugin is connected, or has failed to be
		block := p.nri.BlockPluginSync()
		select {
		case held <- block:
		case <-ctx.Done():
			block.Unblock()
		}
	}()
	select {
	case block := <-held:
		return block.Unblock, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("nri: a plugin that connects is being told of all pods: %w", context.Cause(ctx))
	}
}

// TellPod tells plugins of a pod. An error is a plugin's, or that of asking it.
func (p *Plugins) TellPod(ctx context.Context, moment sandbox.Moment, pod sandbox.Status) (err error) {
	to := toPod(pod)
	switch moment {
	case sandbox.Started:
		err = p.nri.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: to})
	case sandbox.Updated:
		err = p.nri.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: to})
	case sandbox.Stopped:
		err = p.nri.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: to})
	case sandbox.Removed:
		err = p.nri.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: to})
	default:
		err = errUnknownMoment
	}
	return classify(err)
}

// UpdatePod asks plugins whether a pod may get new resources. An error is a plugin's, or that of asking it.
func (p *Plugins) UpdatePod(ctx context.Context, pod sandbox.Status, overhead, resources *sandbox.Resources) error {
	req := &api.UpdatePodSandboxRequest{Pod: toPod(pod)}
	if overhead != nil {
		req.OverheadLinuxResources = podResources(*overhead)
	}
	if resources != nil {
		req.LinuxResources = podResources(*resources)
	}
	_, err := p.nri.UpdatePodSandbox(ctx, req)
	return classify(err)
}

// Tell tells plugins of a container.
func (p *Plugins) Tell(ctx context.Context, moment container.Moment, pod sandbox.Status, c container.Status) (err error) {
	to, ctr := toPod(pod), p.describe(c)
	switch moment {
	case container.MomentCreated:
		err = p.nri.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: to, Container: ctr})
	case container.MomentStarting:
		err = p.nri.StartContainer(ctx, &api.StartContainerRequest{Pod: to, Container: ctr})
	case container.MomentStarted:
		err = p.nri.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: to, Container: ctr})
	case container.MomentUpdated:
		err = p.nri.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: to, Container: ctr})
	case container.MomentStopped:
		var answer *api.StopContainerResponse
		if answer, err = p.nri.StopContainer(ctx, &api.StopContainerRequest{Pod: to, Container: ctr}); err == nil {
			// Its own limits are of no use any more, and whoever stops it waits for this.
			others := slices.DeleteFunc(answer.GetUpdate(), func(u *api.ContainerUpdate) bool { return u.GetContainerId() == c.ID })
			_, err = p.apply(ctx, others)
		}
	case container.MomentRemoved:
		err = p.nri.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: to, Container: ctr})
	default:
		err = errUnknownMoment
	}
	return classify(err)
}

// Adjust lets plugins change a container that is being created, and says whether they did.
func (p *Plugins) Adjust(ctx context.Context, pod sandbox.Status, c container.Status, spec *specs.Spec) (changed bool, err error) {
	answer, err := p.nri.CreateContainer(ctx, &api.CreateContainerRequest{Pod: toPod(pod), Container: toContainer(c, spec)})
	if err != nil {
		return false, classify(err)
	}
	if adjustment := answer.GetAdjust(); adjustment != nil {
		if err := adjust(spec, adjustment, pod.VM); err != nil {
			return false, fmt.Errorf("nri: %w", err)
		}
		changed = true
	}
	_, err = p.apply(ctx, answer.GetUpdate())
	return changed, classify(err)
}

// Update lets plugins change new limits of a container, and changes those of others as they say.
func (p *Plugins) Update(ctx context.Context, pod sandbox.Status, c container.Status, resources *specs.LinuxResources) (*specs.LinuxResources, error) {
	answer, err := p.nri.UpdateContainer(ctx, &api.UpdateContainerRequest{
		Pod: toPod(pod), Container: p.describe(c), LinuxResources: api.FromOCILinuxResources(resources, nil),
	})
	if err != nil {
		return nil, classify(err)
	}
	var others []*api.ContainerUpdate
	for _, u := range answer.GetUpdate() {
		if u.GetContainerId() != c.ID {
			others = append(others, u)
			continue
		}
		if resources, err = limits(u); err != nil {
			return nil, fmt.Errorf("nri: %w", err)
		}
	}
	_, err = p.apply(ctx, others)
	return resources, classify(err)
}

// synchronize tells a plugin that has connected of everything.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	var pods []*api.PodSandbox
	known, node := map[string]bool{}, p.node.Load()
	for _, s := range node.sandboxes.List(ctx) {
		if s.State == sandbox.Ready {
			known[s.ID] = true
			pods = append(pods, toPod(s))
		}
	}
	var list []*api.Container
	for _, c := range node.containers.List(ctx) {
		if known[c.Config.SandboxID] {
			list = append(list, p.describe(c))
		}
	}
	updates, err := tell(ctx, pods, list)
	if err != nil {
		return err
	}
	_, err = p.apply(ctx, updates)
	return err
}

// update is what a plugin asks for by itself. It gets back what failed.
func (p *Plugins) update(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	return p.apply(ctx, updates)
}

// apply changes limits of containers, and returns the changes that failed. Those that may fail are no error, nor are those of
// containers that have gone since the plugin was asked.
func (p *Plugins) apply(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout) // a plugin that connects is told under a context without end
	defer cancel()
	for _, u := range updates {
		resources, failure := limits(u)
		if failure == nil {
			failure = p.node.Load().containers.SetLimits(ctx, u.GetContainerId(), resources)
		}
		if failure == nil {
			continue
		}
		failed = append(failed, u)
		if u.GetIgnoreFailure() || errdefs.IsNotFound(failure) {
			p.log.WarnContext(ctx, "limits that an NRI plugin asked for could not be set", logfields.Container, u.GetContainerId(), logfields.Error, failure)
			continue
		}
		err = errors.Join(err, fmt.Errorf("update container %s: %w", u.GetContainerId(), failure))
	}
	return failed, err
}

// classify gives an error of a plugin a class, unless the daemon's own has one.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case status.Code(err) == codes.Unknown && errors.As(err, new(interface{ GRPCStatus() *status.Status })):
		s, _ := status.FromError(err) // what the plugin said
		return fmt.Errorf("nri: a plugin: %s: %w", s.Message(), errdefs.ErrFailedPrecondition)
	case errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("nri: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("nri: %w", err)
}
