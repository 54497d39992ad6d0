package taskshim

import (
	"context"
	"fmt"
	"strings"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/pistis-run/pistis/internal/task"
)

// Usage is what a container uses, as its shim has it: the host's cgroups do not see into every shim's containers. NotFound for
// one that does not run.
func (p *Pod) Usage(ctx context.Context, id string) (task.ContainerStats, error) {
	c, err := p.container(id)
	if err != nil {
		return task.ContainerStats{}, err
	}
	shim := c.connected()
	if shim == nil {
		return task.ContainerStats{}, fmt.Errorf("container %s does not run: %w", id, errdefs.ErrNotFound)
	}
	metrics, err := shim.Metrics(ctx, id)
	if err != nil {
		if state, gone := shim.State(ctx, c.task()); errdefs.IsNotFound(gone) || state == "stopped" {
			err = fmt.Errorf("container %s has ended: %w", id, errdefs.ErrNotFound)
		}
		return task.ContainerStats{}, classified(err)
	}
	usage, err := fromMetrics(metrics)
	usage.ID = id
	return usage, err
}

// fromMetrics converts the metrics of cgroups, in which shims tell them.
func fromMetrics(metrics *anypb.Any) (u task.ContainerStats, err error) {
	switch kind := metrics.GetTypeUrl(); {
	case strings.HasSuffix(kind, "io.containerd.cgroups.v1.Metrics"):
		var m cgroup1.Metrics
		if err = proto.Unmarshal(metrics.Value, &m); err == nil {
			fromV1(&u, &m)
		}
	case strings.HasSuffix(kind, "io.containerd.cgroups.v2.Metrics"):
		var m cgroup2.Metrics
		if err = proto.Unmarshal(metrics.Value, &m); err == nil {
			fromV2(&u, &m)
		}
	default:
		err = fmt.Errorf("metrics of a shim: type %q is not known: %w", kind, errdefs.ErrNotImplemented)
	}
	return u, err
}

func fromV1(u *task.ContainerStats, m *cgroup1.Metrics) {
	if cpu := m.GetCPU(); cpu != nil {
		u.CPU.UsageNS = cpu.GetUsage().GetTotal()
		u.CPU.Detail = &task.CPUDetail{UserNS: cpu.GetUsage().GetUser(), SystemNS: cpu.GetUsage().GetKernel()}
		if t := cpu.GetThrottling(); t != nil {
			u.CPU.Detail.Throttling = &task.Throttling{Periods: t.Periods, Throttled: t.ThrottledPeriods, ThrottledNS: t.ThrottledTime}
		}
	}
	if mem := m.GetMemory(); mem != nil {
		usage := mem.GetUsage()
		u.Memory = task.Memory{
			Usage: usage.GetUsage(), WorkingSet: less(usage.GetUsage(), mem.TotalInactiveFile), RSS: mem.TotalRSS,
			Swap: less(mem.GetSwap().GetUsage(), usage.GetUsage()), PageFaults: mem.TotalPgFault, MajorPageFaults: mem.TotalPgMajFault,
			Detail: &task.MemoryDetail{
				Cache: mem.TotalCache, MappedFile: mem.TotalMappedFile, Kernel: mem.GetKernel().GetUsage(),
				ActiveFile: mem.TotalActiveFile, InactiveFile: mem.TotalInactiveFile,
			},
		}
		u.Memory.Available = available(usage.GetLimit(), u.Memory.WorkingSet)
	}
	u.Pids, u.PidsLimit = m.GetPids().GetCurrent(), m.GetPids().GetLimit()
	u.Processes = u.Pids
}

func fromV2(u *task.ContainerStats, m *cgroup2.Metrics) {
	const micro = 1000 // nanoseconds
	if cpu := m.GetCPU(); cpu != nil {
		u.CPU.UsageNS = cpu.UsageUsec * micro
		u.CPU.Detail = &task.CPUDetail{UserNS: cpu.UserUsec * micro, SystemNS: cpu.SystemUsec * micro}
		if cpu.NrPeriods > 0 {
			u.CPU.Detail.Throttling = &task.Throttling{Periods: cpu.NrPeriods, Throttled: cpu.NrThrottled, ThrottledNS: cpu.ThrottledUsec * micro}
		}
	}
	if mem := m.GetMemory(); mem != nil {
		u.Memory = task.Memory{
			Usage: mem.Usage, WorkingSet: less(mem.Usage, mem.InactiveFile), RSS: mem.Anon, Swap: mem.SwapUsage,
			PageFaults: mem.Pgfault, MajorPageFaults: mem.Pgmajfault,
			Detail: &task.MemoryDetail{
				Cache: mem.File, MappedFile: mem.FileMapped, Kernel: mem.KernelStack + mem.Slab,
				ActiveFile: mem.ActiveFile, InactiveFile: mem.InactiveFile,
			},
		}
		u.Memory.Available = available(mem.UsageLimit, u.Memory.WorkingSet)
	}
	u.Pids, u.PidsLimit = m.GetPids().GetCurrent(), m.GetPids().GetLimit()
	u.Processes = u.Pids
}

func less(a, b uint64) uint64 { return a - min(a, b) }

// available is what is left of a limit; 0 where there is none.
func available(limit, used uint64) uint64 {
	const none = 1 << 60 // what cgroup v1 has for none is a page less than half of all
	if limit == 0 || limit >= none {
		return 0
	}
	return less(limit, used)
}
