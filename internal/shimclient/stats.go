package shimclient

import (
	"context"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/task"
)

// Stats reads the guest's statistics; no ids means all containers.
func (c *Client) Stats(ctx context.Context, containers ...string) (task.Stats, error) {
	var r shimv1.StatsResponse
	if err := c.call(ctx, shimService, "Stats", &shimv1.StatsRequest{Containers: containers}, &r); err != nil {
		return task.Stats{}, err
	}
	s := task.Stats{At: r.At.AsTime(), CPU: cpuStats(r.Cpu), Memory: memoryStats(r.Memory)}
	if fs := r.Writable; fs != nil {
		s.Writable = &task.FileSystem{Bytes: fs.Bytes, Inodes: fs.Inodes, FreeInodes: fs.FreeInodes}
	}
	for _, i := range r.Interfaces {
		s.Interfaces = append(s.Interfaces, task.Interface{
			Name: i.Name,
			Rx:   task.Traffic{Bytes: i.RxBytes, Packets: i.RxPackets, Errors: i.RxErrors, Dropped: i.RxDropped},
			Tx:   task.Traffic{Bytes: i.TxBytes, Packets: i.TxPackets, Errors: i.TxErrors, Dropped: i.TxDropped},
		})
	}
	for _, v := range r.Containers {
		s.Containers = append(s.Containers, task.ContainerStats{
			ID: v.Id, CPU: cpuStats(v.Cpu), Memory: memoryStats(v.Memory), IO: ioStats(v.Io),
			Pids: v.Pids, PidsLimit: v.PidsLimit, Processes: v.Processes, OpenFiles: v.OpenFiles,
			WritableBytes: v.WritableBytes, WritableInodes: v.WritableInodes,
		})
	}
	return s, nil
}

func cpuStats(c *shimv1.CPUStats) task.CPU {
	out := task.CPU{UsageNS: c.GetUsageNs(), PSI: psi(c.GetPsi())}
	if d := c.GetDetail(); d != nil {
		out.Detail = &task.CPUDetail{UserNS: d.UserNs, SystemNS: d.SystemNs}
		if t := d.Throttling; t != nil {
			out.Detail.Throttling = &task.Throttling{Periods: t.Periods, Throttled: t.Throttled, ThrottledNS: t.ThrottledNs}
		}
	}
	return out
}

func memoryStats(m *shimv1.MemoryStats) task.Memory {
	out := task.Memory{
		Usage: m.GetUsageBytes(), WorkingSet: m.GetWorkingSetBytes(), RSS: m.GetRssBytes(), Available: m.GetAvailableBytes(),
		Swap: m.GetSwapBytes(), PageFaults: m.GetPageFaults(), MajorPageFaults: m.GetMajorPageFaults(), PSI: psi(m.GetPsi()),
	}
	if d := m.GetDetail(); d != nil {
		out.Detail = &task.MemoryDetail{
			Cache: d.CacheBytes, MappedFile: d.MappedFileBytes, Kernel: d.KernelBytes, ActiveFile: d.ActiveFileBytes, InactiveFile: d.InactiveFileBytes,
			Peak: d.PeakBytes, LimitHits: d.LimitHits, OOMKills: d.OomKills,
		}
	}
	return out
}

func ioStats(io *shimv1.IOStats) *task.IO {
	if io == nil {
		return nil
	}
	out := &task.IO{PSI: psi(io.Psi)}
	for _, d := range io.Devices {
		out.Devices = append(out.Devices, task.DeviceIO{
			Device: d.Device, ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes, Reads: d.Reads, Writes: d.Writes,
		})
	}
	return out
}

func psi(p *shimv1.PSI) *task.PSI {
	if p == nil {
		return nil
	}
	data := func(d *shimv1.PSIData) task.PSIData {
		return task.PSIData{Total: d.GetTotalUs(), Avg10: d.GetAvg10(), Avg60: d.GetAvg60(), Avg300: d.GetAvg300()}
	}
	return &task.PSI{Full: data(p.Full), Some: data(p.Some)}
}
