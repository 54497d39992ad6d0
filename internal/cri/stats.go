package cri

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	// statsParallel is how many sandboxes are asked at a time, statsTimeout how long one may take before it is given up
	// and a list goes without it.
	statsParallel = 16
	statsTimeout  = 10 * time.Second
)

// statsCalls are the calls about statistics.
type statsCalls struct {
	sandboxes   sandboxReader
	tasks       sandboxTasks
	containers  containerReader
	containerFS func(ctx context.Context) (image.FSInfo, error)
	cpu         *sampler
	log         *slog.Logger
}

// ContainerStats answers for one container that runs.
func (c *statsCalls) ContainerStats(ctx context.Context, req *runtime.ContainerStatsRequest) (*runtime.ContainerStatsResponse, error) {
	if err := requireID("container", req.ContainerId); err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	s, err := c.containers.Status(ctx, req.ContainerId)
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", req.ContainerId, err)
	}
	if s.State != container.Running {
		return nil, fmt.Errorf("statistics of container %s: it is %s, not running: %w", s.ID, s.State, errdefs.ErrFailedPrecondition)
	}
	stats, err := c.one(ctx, s.Config.SandboxID, s.ID)
	if err != nil {
		return nil, fmt.Errorf("statistics of container %s: %w", s.ID, err)
	}
	for _, one := range stats.Containers {
		if one.ID == s.ID {
			return &runtime.ContainerStatsResponse{Stats: c.containerStats(ctx, s, one, stats.At)}, nil
		}
	}
	return nil, fmt.Errorf("statistics of container %s: its pod has none: %w", s.ID, errdefs.ErrNotFound)
}

// ListContainerStats answers for all running containers that the filter lets through. A pod that does not answer
// is left out, and logged.
func (c *statsCalls) ListContainerStats(ctx context.Context, req *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	list, err := c.containerList(ctx, req.GetFilter())
	return &runtime.ListContainerStatsResponse{Stats: list}, err
}

func (c *statsCalls) containerList(ctx context.Context, f *runtime.ContainerStatsFilter) ([]*runtime.ContainerStats, error) {
	pods := map[string][]container.Status{}
	for _, s := range c.containers.List(ctx) {
		if s.State == container.Running && strings.HasPrefix(s.ID, f.GetId()) && strings.HasPrefix(s.Config.SandboxID, f.GetPodSandboxId()) &&
			matchesLabels(s.Config.Labels, f.GetLabelSelector()) {
			pods[s.Config.SandboxID] = append(pods[s.Config.SandboxID], s)
		}
	}
	var list []*runtime.ContainerStats
	asked := make(map[string][]string, len(pods))
	for sandboxID, containers := range pods {
		for _, s := range containers {
			asked[sandboxID] = append(asked[sandboxID], s.ID)
		}
	}
	for sandboxID, stats := range c.ask(ctx, asked) {
		list = append(list, c.ofContainers(ctx, pods[sandboxID], stats)...)
	}
	return list, ctx.Err()
}

// PodSandboxStats answers for one sandbox that is ready.
func (c *statsCalls) PodSandboxStats(ctx context.Context, req *runtime.PodSandboxStatsRequest) (*runtime.PodSandboxStatsResponse, error) {
	if err := requireID("pod sandbox", req.PodSandboxId); err != nil {
		return nil, fmt.Errorf("statistics: %w", err)
	}
	s, err := c.sandboxes.Status(ctx, req.PodSandboxId)
	if err != nil {
		return nil, fmt.Errorf("statistics of pod %s: %w", req.PodSandboxId, err)
	}
	stats, err := c.one(ctx, s.ID)
	if err != nil {
		return nil, fmt.Errorf("statistics of pod %s: %w", s.ID, err)
	}
	return &runtime.PodSandboxStatsResponse{Stats: c.sandboxStats(ctx, s, c.running(ctx)[s.ID], stats)}, nil
}

// ListPodSandboxStats answers for all ready sandboxes that the filter lets through, as ListContainerStats does.
func (c *statsCalls) ListPodSandboxStats(ctx context.Context, req *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	list, err := c.sandboxList(ctx, req.GetFilter())
	return &runtime.ListPodSandboxStatsResponse{Stats: list}, err
}

func (c *statsCalls) sandboxList(ctx context.Context, f *runtime.PodSandboxStatsFilter) ([]*runtime.PodSandboxStats, error) {
	pods := c.ready(ctx, f)
	answers := c.ask(ctx, whole(pods))
	running := c.running(ctx)
	var list []*runtime.PodSandboxStats
	for id, stats := range answers {
		list = append(list, c.sandboxStats(ctx, pods[id], running[id], stats))
	}
	return list, ctx.Err()
}

// ready are the ready sandboxes that the filter lets through, by id.
func (c *statsCalls) ready(ctx context.Context, f *runtime.PodSandboxStatsFilter) map[string]sandbox.Status {
	pods := map[string]sandbox.Status{}
	for _, s := range c.sandboxes.List(ctx) {
		if s.State == sandbox.Ready && strings.HasPrefix(s.ID, f.GetId()) && matchesLabels(s.Config.Labels, f.GetLabelSelector()) {
			pods[s.ID] = s
		}
	}
	return pods
}

// running are the containers that run, by sandbox.
func (c *statsCalls) running(ctx context.Context) map[string][]container.Status {
	all := map[string][]container.Status{}
	for _, s := range c.containers.List(ctx) {
		if s.State == container.Running {
			all[s.Config.SandboxID] = append(all[s.Config.SandboxID], s)
		}
	}
	return all
}

// whole asks for all of each sandbox.
func whole(pods map[string]sandbox.Status) map[string][]string {
	asked := make(map[string][]string, len(pods))
	for id := range pods {
		asked[id] = nil
	}
	return asked
}

// one collects the statistics of one sandbox, which may not answer, or of some of its containers.
func (c *statsCalls) one(ctx context.Context, id string, containers ...string) (task.Stats, error) {
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	return c.tasks.Stats(ctx, id, containers...)
}

// ask collects the statistics of several sandboxes, or of some containers of each.
func (c *statsCalls) ask(ctx context.Context, asked map[string][]string) map[string]task.Stats {
	var mu sync.Mutex
	all := map[string]task.Stats{}
	var group errgroup.Group
	group.SetLimit(statsParallel)
	for id, containers := range asked {
		group.Go(func() error {
			stats, err := c.one(ctx, id, containers...)
			if err != nil {
				c.log.WarnContext(ctx, "a pod is missing from the statistics", logfields.Sandbox, id, logfields.Error, err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			all[id] = stats
			return nil
		})
	}
	_ = group.Wait() // none returns an error
	return all
}

func (c *statsCalls) sandboxStats(ctx context.Context, s sandbox.Status, running []container.Status, stats task.Stats) *runtime.PodSandboxStats {
	linux := &runtime.LinuxPodSandboxStats{
		Cpu: c.cpuUsage(s.ID, stats.CPU, stats.At), Memory: memoryUsage(stats.Memory, stats.At), Network: networkUsage(stats),
		Process:    &runtime.ProcessUsage{Timestamp: stats.At.UnixNano(), ProcessCount: number(processes(stats))},
		Containers: c.ofContainers(ctx, running, stats), Io: ioUsage(stats.IOPSI, stats.At),
	}
	return &runtime.PodSandboxStats{
		Attributes: &runtime.PodSandboxAttributes{
			Id: s.ID, Metadata: sandboxMetadata(s.Config), Labels: s.Config.Labels, Annotations: s.Config.Annotations,
		},
		Linux: linux,
	}
}

func processes(stats task.Stats) uint64 {
	var n uint64
	for _, c := range stats.Containers {
		n += c.Pids
	}
	return n
}

// ofContainers are the statistics of those containers that stats knows.
func (c *statsCalls) ofContainers(ctx context.Context, list []container.Status, stats task.Stats) []*runtime.ContainerStats {
	byID := map[string]task.ContainerStats{}
	for _, one := range stats.Containers {
		byID[one.ID] = one
	}
	var out []*runtime.ContainerStats
	for _, s := range list {
		if one, ok := byID[s.ID]; ok {
			out = append(out, c.containerStats(ctx, s, one, stats.At))
		}
	}
	return out
}

func (c *statsCalls) containerStats(ctx context.Context, s container.Status, stats task.ContainerStats, at time.Time) *runtime.ContainerStats {
	nano := at.UnixNano()
	var writable *runtime.FilesystemUsage
	if stats.WritableInodes > 0 { // none is that it could not be measured
		writable = &runtime.FilesystemUsage{Timestamp: nano, UsedBytes: number(stats.WritableBytes), InodesUsed: number(stats.WritableInodes)}
		if fs, err := c.containerFS(ctx); err == nil {
			writable.FsId = &runtime.FilesystemIdentifier{Mountpoint: fs.Mountpoint}
		}
	}
	var pressure *task.PSI
	if stats.IO != nil {
		pressure = stats.IO.PSI
	}
	return &runtime.ContainerStats{
		Attributes: &runtime.ContainerAttributes{
			Id: s.ID, Metadata: containerMetadata(s.Config), Labels: s.Config.Labels, Annotations: s.Config.Annotations,
		},
		Cpu: c.cpuUsage(s.ID, stats.CPU, at), Memory: memoryUsage(stats.Memory, at), WritableLayer: writable,
		Swap: &runtime.SwapUsage{Timestamp: nano, SwapUsageBytes: number(stats.Memory.Swap)}, Io: ioUsage(pressure, at),
	}
}

func number(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }

func (c *statsCalls) cpuUsage(key string, cpu task.CPU, at time.Time) *runtime.CpuUsage {
	usage := &runtime.CpuUsage{Timestamp: at.UnixNano(), UsageCoreNanoSeconds: number(cpu.UsageNS), Psi: psi(cpu.PSI)}
	if rate, ok := c.cpu.rate(key, at, cpu.UsageNS); ok {
		usage.UsageNanoCores = number(rate)
	}
	return usage
}

func memoryUsage(m task.Memory, at time.Time) *runtime.MemoryUsage {
	usage := &runtime.MemoryUsage{
		Timestamp: at.UnixNano(), WorkingSetBytes: number(m.WorkingSet), UsageBytes: number(m.Usage), RssBytes: number(m.RSS),
		PageFaults: number(m.PageFaults), MajorPageFaults: number(m.MajorPageFaults), Psi: psi(m.PSI),
	}
	if m.Available > 0 {
		usage.AvailableBytes = number(m.Available)
	}
	return usage
}

// ioUsage is nothing but the pressure, in CRI.
func ioUsage(pressure *task.PSI, at time.Time) *runtime.IoUsage {
	if pressure == nil {
		return nil
	}
	return &runtime.IoUsage{Timestamp: at.UnixNano(), Psi: psi(pressure)}
}

func psi(p *task.PSI) *runtime.PsiStats {
	if p == nil {
		return nil
	}
	data := func(d task.PSIData) *runtime.PsiData {
		// The kernel counts microseconds, CRI nanoseconds.
		return &runtime.PsiData{Total: d.Total * 1000, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &runtime.PsiStats{Full: data(p.Full), Some: data(p.Some)}
}

// networkUsage takes the first interface that is not the loopback for the default one, as they come in order.
func networkUsage(stats task.Stats) *runtime.NetworkUsage {
	usage := &runtime.NetworkUsage{Timestamp: stats.At.UnixNano()}
	for _, i := range stats.Interfaces {
		if i.Name == "lo" {
			continue
		}
		one := &runtime.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: number(i.Rx.Bytes), RxErrors: number(i.Rx.Errors), TxBytes: number(i.Tx.Bytes), TxErrors: number(i.Tx.Errors),
		}
		if usage.DefaultInterface == nil {
			usage.DefaultInterface = one
			continue
		}
		usage.Interfaces = append(usage.Interfaces, one)
	}
	return usage
}
