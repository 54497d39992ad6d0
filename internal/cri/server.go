package cri

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/cri/metrics"
	"github.com/pistis-run/pistis/internal/image"
)

// Options are the parts of the engine and the settings that the server answers for. All fields are needed but
// those that say otherwise.
type Options struct {
	Sandboxes  sandboxes
	Containers containers
	Images     images
	// Events tells what happens to containers and sandboxes.
	Events events
	// Streams hands out URLs for exec, attach and port-forward.
	Streams streams
	// ContainerFS says where writable layers are kept and what they use.
	ContainerFS func(ctx context.Context) (image.FSInfo, error)
	// NetworkReady is nil when pods can get a network.
	NetworkReady func() error
	// SetPodCIDR is told which networks the kubelet was given for this node's pods; an error refuses them.
	SetPodCIDR func(ctx context.Context, cidr string) error
	Handlers   Handlers
	// SystemdCgroups: the kubelet must use the systemd cgroup driver, else cgroupfs.
	SystemdCgroups bool
	// Version of the daemon.
	Version string
	// Info is returned, each value as JSON, by a verbose Status. It may be nil.
	Info map[string]any
	// Log receives what calls have to say beside their answers; nil is slog's default.
	Log *slog.Logger
	// Done, closed when the daemon goes down, ends streams that would last for ever. It may be nil.
	Done <-chan struct{}
}

// sandboxes is the engine's owner of sandboxes.
type sandboxes interface {
	sandboxLifecycle
	sandboxReader
	sandboxTasks
}

// containers is the engine's owner of containers.
type containers interface {
	containerLifecycle
	containerReader
	containerUpdater
	containerProcesses
}

// Server answers CRI calls. Register adds it to a gRPC server.
type Server struct {
	runtimeServer *runtimeServer
	imageServer   *imageServer
}

// runtimeServer is RuntimeService, put together from its groups. What none of them has is deeper in the
// embedding, in unbuiltCalls and below, and answers Unimplemented.
type runtimeServer struct {
	unbuilt
	*runtimeCalls
	*sandboxCalls
	*containerCalls
	*processCalls
	*statsCalls
	*metricCalls
	*eventCalls
}

// unbuilt puts the calls that are not built one level below the groups, so that theirs win.
type unbuilt struct{ unbuiltCalls }

// New puts a server together. It starts nothing.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	stats := &statsCalls{
		sandboxes: o.Sandboxes, tasks: o.Sandboxes, containers: o.Containers,
		containerFS: o.ContainerFS, cpu: newSampler(time.Now), log: o.Log,
	}
	events := &eventCalls{events: o.Events, done: o.Done}
	return &Server{
		runtimeServer: &runtimeServer{
			runtimeCalls: &runtimeCalls{
				version: o.Version, handlers: o.Handlers, networkReady: o.NetworkReady,
				setPodCIDR: o.SetPodCIDR, systemdCgroups: o.SystemdCgroups, info: o.Info,
			},
			sandboxCalls: &sandboxCalls{
				sandboxes: o.Sandboxes, containers: o.Containers, handlers: o.Handlers,
			},
			containerCalls: &containerCalls{
				containers: o.Containers, reader: o.Containers, updater: o.Containers,
				sandboxes: o.Sandboxes, images: o.Images, handlers: o.Handlers, log: o.Log,
			},
			processCalls: &processCalls{
				processes: o.Containers, containers: o.Containers, sandboxes: o.Sandboxes, streams: o.Streams,
			},
			statsCalls:  stats,
			metricCalls: &metricCalls{stats: stats, table: metrics.New()},
			eventCalls:  events,
		},
		imageServer: &imageServer{images: o.Images, handlers: o.Handlers, containerFS: o.ContainerFS},
	}
}

// HandlerOf is the runtime handler of the pod that a request is about, or empty. Only handlers that exist are named.
func (s *Server) HandlerOf(req any) string {
	ctx := context.Background() // in memory, nothing waits
	calls := s.runtimeServer
	pod := ""
	switch r := req.(type) {
	case *runtime.RunPodSandboxRequest:
		handler, _ := calls.sandboxCalls.handlers.Select(r.RuntimeHandler, r.GetConfig().GetAnnotations()) // none where it is refused
		return handler
	case interface{ GetPodSandboxId() string }:
		pod = r.GetPodSandboxId()
	case interface{ GetContainerId() string }:
		if c, err := calls.containerCalls.reader.Status(ctx, r.GetContainerId()); err == nil {
			pod = c.Config.SandboxID
		}
	}
	if pod == "" {
		return ""
	}
	sandbox, err := calls.sandboxCalls.sandboxes.Status(ctx, pod)
	if err != nil {
		return ""
	}
	return sandbox.Config.Handler
}

// Register adds both services to g, which should have been made with the options of Interceptors.
func (s *Server) Register(g *grpc.Server) {
	runtime.RegisterRuntimeServiceServer(g, s.runtimeServer)
	runtime.RegisterImageServiceServer(g, s.imageServer)
}
