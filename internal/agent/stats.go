package agent

import (
	"context"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/cgroup"
	"github.com/pistis-run/pistis/internal/agent/guestnet"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/task"
)

// Stats implements agentv1.AgentService.
func (a *Agent) Stats(_ context.Context, req *agentv1.StatsRequest) (*agentv1.StatsResponse, error) {
	var containers []*container
	if len(req.Containers) == 0 {
		a.mu.Lock()
		containers = slices.Collect(maps.Values(a.containers))
		a.mu.Unlock()
	}
	for _, id := range req.Containers {
		// One that has gone meanwhile is left out, and the others are not.
		if c, err := a.container(id); err == nil {
			containers = append(containers, c)
		}
	}
	resp := &agentv1.StatsResponse{At: timestamppb.Now(), Writable: fileSystem(a.Roots.FileSystem())}
	for _, c := range containers {
		usage, err := cgroup.Usage(c.id)
		if err != nil && !errdefs.IsNotFound(err) {
			a.Log.Warn("a container is missing from the statistics", logfields.Container, c.id, logfields.Error, err)
			continue
		}
		usage.WritableBytes, usage.WritableInodes = a.Roots.Usage(c.id)
		resp.Containers = append(resp.Containers, containerStats(usage))
	}
	cpu, memory := cgroup.Guest()
	resp.GuestCpu, resp.GuestMemory = cpuStats(cpu), memoryStats(memory)
	var err error
	resp.Interfaces, err = guestnet.Stats()
	return resp, err
}

func containerStats(c task.ContainerStats) *agentv1.ContainerStats {
	return &agentv1.ContainerStats{
		Id: c.ID, Cpu: cpuStats(c.CPU), Memory: memoryStats(c.Memory), Io: ioStats(c.IO),
		Pids: &agentv1.PidsStats{Current: c.Pids, Limit: c.PidsLimit}, Processes: c.Processes, OpenFiles: c.OpenFiles,
		WritableBytes: c.WritableBytes, WritableInodes: c.WritableInodes,
	}
}

func cpuStats(c task.CPU) *agentv1.CPUStats {
	out := &agentv1.CPUStats{UsageNs: c.UsageNS, Psi: psi(c.PSI)}
	if d := c.Detail; d != nil {
		out.Detail = &agentv1.CPUDetail{UserNs: d.UserNS, SystemNs: d.SystemNS}
		if t := d.Throttling; t != nil {
			out.Detail.Throttling = &agentv1.Throttling{Periods: t.Periods, Throttled: t.Throttled, ThrottledNs: t.ThrottledNS}
		}
	}
	return out
}

func memoryStats(m task.Memory) *agentv1.MemoryStats {
	out := &agentv1.MemoryStats{
		UsageBytes: m.Usage, WorkingSetBytes: m.WorkingSet, RssBytes: m.RSS, AvailableBytes: m.Available, SwapBytes: m.Swap,
		PageFaults: m.PageFaults, MajorPageFaults: m.MajorPageFaults, Psi: psi(m.PSI),
	}
	if d := m.Detail; d != nil {
		out.Detail = &agentv1.MemoryDetail{
			CacheBytes: d.Cache, MappedFileBytes: d.MappedFile, KernelBytes: d.Kernel, ActiveFileBytes: d.ActiveFile, InactiveFileBytes: d.InactiveFile,
			PeakBytes: d.Peak, LimitHits: d.LimitHits, OomKills: d.OOMKills,
		}
	}
	return out
}

func ioStats(io *task.IO) *agentv1.IOStats {
	if io == nil {
		return nil
	}
	out := &agentv1.IOStats{Psi: psi(io.PSI)}
	for _, d := range io.Devices {
		out.Devices = append(out.Devices, &agentv1.DeviceIO{
			Device: d.Device, ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes, Reads: d.Reads, Writes: d.Writes,
		})
	}
	return out
}

func fileSystem(fs *task.FileSystem) *agentv1.FileSystem {
	if fs == nil {
		return nil
	}
	return &agentv1.FileSystem{Bytes: fs.Bytes, Inodes: fs.Inodes, FreeInodes: fs.FreeInodes}
}

func psi(p *task.PSI) *agentv1.PSI {
	if p == nil {
		return nil
	}
	data := func(d task.PSIData) *agentv1.PSIData {
		return &agentv1.PSIData{TotalUs: d.Total, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &agentv1.PSI{Full: data(p.Full), Some: data(p.Some)}
}
