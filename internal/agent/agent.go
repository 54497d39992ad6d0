package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/rootfs"
	"github.com/pistis-run/pistis/internal/agent/share"
	"github.com/pistis-run/pistis/internal/agent/volumes"
	"github.com/pistis-run/pistis/internal/lifecycle"
	"github.com/pistis-run/pistis/internal/reaper"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/transport"
	"github.com/pistis-run/pistis/internal/version"
)

const (
	// Bounds of one pod: what goes beyond is refused.
	maxContainers = 512
	maxExecs      = 1024
	maxID         = 128
)

// runtime executes containers.
type runtime interface {
	Create(ctx context.Context, id, bundle string, stdio runc.Stdio) (*runc.Process, error)
	Start(ctx context.Context, id string) error
	Exec(ctx context.Context, id, dir, processFile string, stdio runc.Stdio) (*runc.Process, error)
	Update(ctx context.Context, id, resourcesFile string) error
	Pause(ctx context.Context, id string) error
	Resume(ctx context.Context, id string) error
	Delete(ctx context.Context, id string) error
}

// Config is what an Agent works with.
type Config struct {
	// Eager is how many may wait for the next message of a share in the kernel; GOMAXPROCS is more by the number of processors.
	Eager   int
	Runtime runtime
	Reaper  *reaper.Reaper
	Roots   *rootfs.Store
	// Dir is for bundles and the pod's files, in memory.
	Dir string
	Log *slog.Logger
	// Uptime of the kernel when the agent was ready.
	Uptime time.Duration
}

// Agent implements api/agent/v1. Create it with New.
type Agent struct {
	Config
	shutdown  chan struct{} // closed by Shutdown
	halt      sync.Once
	network   sync.Mutex       // one configuration of the network at a time
	resizing  *lifecycle.Claim // of the processors
	work      sync.WaitGroup
	volumes   *volumes.Set
	eagerness *transport.Eagerness // of those who carry messages of shares
	// shareMemory is what the guest has in common with the host, or nil.
	shareMemory func() *share.Memory

	mu         sync.Mutex
	sandbox    sandbox
	containers map[string]*container
	shares     map[string]*hostShare
}

var _ agentv1.AgentService = (*Agent)(nil)

// New returns an agent that serves nothing yet.
func New(cfg Config) *Agent {
	a := &Agent{
		Config: cfg, shutdown: make(chan struct{}), resizing: lifecycle.NewClaim(), volumes: volumes.New(filepath.Join(cfg.Dir, "memory"), agentv1.SharePath),
		containers: map[string]*container{}, shares: map[string]*hostShare{}, eagerness: transport.NewEagerness(cfg.Eager),
	}
	a.shareMemory = sync.OnceValue(a.findMemory)
	return a
}

// Serve takes calls on control and streams on all of streams until Shutdown was called, ctx ends or a listener fails.
// It closes them.
func (a *Agent) Serve(ctx context.Context, control net.Listener, streams ...net.Listener) error {
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(interceptor(a.Log)))
	if err != nil {
		return err
	}
	agentv1.RegisterAgentService(server, a)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1+len(streams))
	var serving sync.WaitGroup
	serving.Go(func() { failed <- fmt.Errorf("control port: %w", server.Serve(ctx, control)) })
	for _, l := range streams {
		serving.Go(func() { failed <- fmt.Errorf("stream port: %w", a.serveStreams(ctx, l)) })
	}
	select {
	case <-a.shutdown:
	case <-ctx.Done():
		err = context.Cause(ctx)
	case err = <-failed:
	}
	for _, l := range streams {
		l.Close()
	}
	// Close ends idle connections, and with them lets the answer to Shutdown out.
	return errors.Join(err, server.Close())
}

// Hello implements agentv1.AgentService.
func (a *Agent) Hello(_ context.Context, req *agentv1.HelloRequest) (*agentv1.HelloResponse, error) {
	if req.Version == 0 {
		return nil, invalid("hello: the host names no version of the protocol")
	}
	kernel, err := os.ReadFile("/proc/version")
	if err != nil {
		return nil, err
	}
	return &agentv1.HelloResponse{
		Version: agentv1.ProtocolVersion, AgentVersion: version.Version,
		Kernel: string(kernel), UptimeNs: uint64(a.Uptime), Features: []string{
			agentv1.FeatureShares, agentv1.FeatureShareChanges, agentv1.FeatureShareAttributes, agentv1.FeatureLargeShares, agentv1.FeaturePIDNamespaces,
			agentv1.FeatureModules, agentv1.FeatureMemoryVolumes, agentv1.FeatureBlockDevices, agentv1.FeatureResize, agentv1.FeatureClock, agentv1.FeatureShareParts,
			agentv1.FeatureDirectShares,
		},
	}, nil
}

// validID is what runc and a cgroup take as a name.
var validID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]*$`)

func checkID(kind, id string) error {
	if len(id) > maxID || !validID.MatchString(id) {
		return invalid("%s id %.200q: 1 to %d letters, digits, '_', '.', '+' and '-' are possible", kind, id, maxID)
	}
	return nil
}

func (a *Agent) container(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, ok := a.containers[id]
	if !ok {
		return nil, fmt.Errorf("container %.200q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// process finds a container's own process, or an exec of it.
func (a *Agent) process(id, exec string) (*container, *process, error) {
	c, err := a.container(id)
	if err != nil {
		return nil, nil, err
	}
	if exec == "" {
		return c, c.init, nil
	}
	p, err := c.exec(exec)
	return c, p, err
}
