package agentclient

import (
	"context"
	"math"
	"time"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/task"
)

// maxDevices bounds the block devices of one container.
const maxDevices = 256

// Stats reads statistics; no ids means all containers. At is the host's time.
func (c *Client) Stats(ctx context.Context, containers ...string) (task.Stats, error) {
	r, err := call(c, ctx, "read statistics", c.agent.Stats, &agentv1.StatsRequest{Containers: containers})
	if err != nil {
		return task.Stats{}, err
	}
	if len(r.Containers) > maxContainers || len(r.Interfaces) > maxInterfaces {
		return task.Stats{}, hostile("read statistics", "%d containers and %d interfaces", len(r.Containers), len(r.Interfaces))
	}
	s := task.Stats{At: time.Now(), CPU: cpuStats(r.GuestCpu), Memory: memoryStats(r.GuestMemory)}
	if fs := r.Writable; fs != nil {
		s.Writable = &task.FileSystem{Bytes: fs.Bytes, Inodes: fs.Inodes, FreeInodes: fs.FreeInodes}
	}
	for _, i := range r.Interfaces {
		s.Interfaces = append(s.Interfaces, task.Interface{
			Name: clean(i.GetName(), maxName),
			Rx:   task.Traffic{Bytes: i.GetRxBytes(), Packets: i.GetRxPackets(), Errors: i.GetRxErrors(), Dropped: i.GetRxDropped()},
			Tx:   task.Traffic{Bytes: i.GetTxBytes(), Packets: i.GetTxPackets(), Errors: i.GetTxErrors(), Dropped: i.GetTxDropped()},
		})
	}
	for _, v := range r.Containers {
		if n := len(v.GetIo().GetDevices()); n > maxDevices {
			return task.Stats{}, hostile("read statistics", "%d block devices", n)
		}
		s.Containers = append(s.Containers, containerStats(v))
	}
	return s, nil
}

func containerStats(v *agentv1.ContainerStats) task.ContainerStats {
	return task.ContainerStats{
		ID: clean(v.GetId(), maxName), CPU: cpuStats(v.GetCpu()), Memory: memoryStats(v.GetMemory()), IO: ioStats(v.GetIo()),
		Pids: v.GetPids().GetCurrent(), PidsLimit: v.GetPids().GetLimit(), Processes: v.GetProcesses(), OpenFiles: v.OpenFiles,
		WritableBytes: v.GetWritableBytes(), WritableInodes: v.GetWritableInodes(),
	}
}

func cpuStats(c *agentv1.CPUStats) task.CPU {
	out := task.CPU{UsageNS: c.GetUsageNs(), PSI: psi(c.GetPsi())}
	if d := c.GetDetail(); d != nil {
		out.Detail = &task.CPUDetail{UserNS: d.UserNs, SystemNS: d.SystemNs}
		if t := d.Throttling; t != nil {
			out.Detail.Throttling = &task.Throttling{Periods: t.Periods, Throttled: t.Throttled, ThrottledNS: t.ThrottledNs}
		}
	}
	return out
}

func memoryStats(m *agentv1.MemoryStats) task.Memory {
	out := task.Memory{
		Usage: m.GetUsageBytes(), WorkingSet: m.GetWorkingSetBytes(), RSS: m.GetRssBytes(),
		Available: m.GetAvailableBytes(), Swap: m.GetSwapBytes(),
		PageFaults: m.GetPageFaults(), MajorPageFaults: m.GetMajorPageFaults(), PSI: psi(m.GetPsi()),
	}
	if d := m.GetDetail(); d != nil {
		out.Detail = &task.MemoryDetail{
			Cache: d.CacheBytes, MappedFile: d.MappedFileBytes, Kernel: d.KernelBytes, ActiveFile: d.ActiveFileBytes, InactiveFile: d.InactiveFileBytes,
			Peak: d.PeakBytes, LimitHits: d.LimitHits, OOMKills: d.OomKills,
		}
	}
	return out
}

func ioStats(io *agentv1.IOStats) *task.IO {
	if io == nil {
		return nil
	}
	out := &task.IO{PSI: psi(io.Psi)}
	for _, d := range io.Devices {
		out.Devices = append(out.Devices, task.DeviceIO{
			Device: clean(d.GetDevice(), maxName), ReadBytes: d.GetReadBytes(), WriteBytes: d.GetWriteBytes(), Reads: d.GetReads(), Writes: d.GetWrites(),
		})
	}
	return out
}

func psi(p *agentv1.PSI) *task.PSI {
	if p == nil {
		return nil
	}
	return &task.PSI{Full: psiData(p.Full), Some: psiData(p.Some)}
}

func psiData(d *agentv1.PSIData) task.PSIData {
	return task.PSIData{Total: d.GetTotalUs(), Avg10: percent(d.GetAvg10()), Avg60: percent(d.GetAvg60()), Avg300: percent(d.GetAvg300())}
}

// percent keeps what cannot be a share out of arithmetic and JSON.
func percent(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return min(max(v, 0), 100)
}
