package shim

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/task"
)

// Stats reads the guest's statistics. Only containers of this sandbox are in them, whatever the guest says.
func (x extras) Stats(ctx context.Context, r *shimv1.StatsRequest) (*shimv1.StatsResponse, error) {
	v, err := x.s.machine()
	if err != nil {
		return nil, err
	}
	stats, err := v.Agent().Stats(ctx, r.Containers...)
	if err != nil {
		return nil, err
	}
	answer := &shimv1.StatsResponse{At: timestamppb.New(stats.At), Cpu: cpuStats(stats.CPU), Memory: memoryStats(stats.Memory)}
	if fs := stats.Writable; fs != nil {
		answer.Writable = &shimv1.FileSystem{Bytes: fs.Bytes, Inodes: fs.Inodes, FreeInodes: fs.FreeInodes}
	}
	for _, i := range stats.Interfaces {
		answer.Interfaces = append(answer.Interfaces, &shimv1.InterfaceStats{
			Name: i.Name, RxBytes: i.Rx.Bytes, RxPackets: i.Rx.Packets, RxErrors: i.Rx.Errors, RxDropped: i.Rx.Dropped,
			TxBytes: i.Tx.Bytes, TxPackets: i.Tx.Packets, TxErrors: i.Tx.Errors, TxDropped: i.Tx.Dropped,
		})
	}
	for _, c := range stats.Containers {
		if _, err := x.s.container(c.ID); err != nil {
			continue
		}
		answer.Containers = append(answer.Containers, &shimv1.ContainerStats{
			Id: c.ID, Cpu: cpuStats(c.CPU), Memory: memoryStats(c.Memory), Io: ioStats(c.IO),
			Pids: c.Pids, PidsLimit: c.PidsLimit, Processes: c.Processes, OpenFiles: c.OpenFiles,
			WritableBytes: c.WritableBytes, WritableInodes: c.WritableInodes,
		})
	}
	return answer, nil
}

func cpuStats(c task.CPU) *shimv1.CPUStats {
	out := &shimv1.CPUStats{UsageNs: c.UsageNS, Psi: psi(c.PSI)}
	if d := c.Detail; d != nil {
		out.Detail = &shimv1.CPUDetail{UserNs: d.UserNS, SystemNs: d.SystemNS}
		if t := d.Throttling; t != nil {
			out.Detail.Throttling = &shimv1.Throttling{Periods: t.Periods, Throttled: t.Throttled, ThrottledNs: t.ThrottledNS}
		}
	}
	return out
}

func memoryStats(m task.Memory) *shimv1.MemoryStats {
	out := &shimv1.MemoryStats{
		UsageBytes: m.Usage, WorkingSetBytes: m.WorkingSet, RssBytes: m.RSS, AvailableBytes: m.Available, SwapBytes: m.Swap,
		PageFaults: m.PageFaults, MajorPageFaults: m.MajorPageFaults, Psi: psi(m.PSI),
	}
	if d := m.Detail; d != nil {
		out.Detail = &shimv1.MemoryDetail{
			CacheBytes: d.Cache, MappedFileBytes: d.MappedFile, KernelBytes: d.Kernel, ActiveFileBytes: d.ActiveFile, InactiveFileBytes: d.InactiveFile,
			PeakBytes: d.Peak, LimitHits: d.LimitHits, OomKills: d.OOMKills,
		}
	}
	return out
}

func ioStats(io *task.IO) *shimv1.IOStats {
	if io == nil {
		return nil
	}
	out := &shimv1.IOStats{Psi: psi(io.PSI)}
	for _, d := range io.Devices {
		out.Devices = append(out.Devices, &shimv1.DeviceIO{
			Device: d.Device, ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes, Reads: d.Reads, Writes: d.Writes,
		})
	}
	return out
}

func psi(p *task.PSI) *shimv1.PSI {
	if p == nil {
		return nil
	}
	data := func(d task.PSIData) *shimv1.PSIData {
		return &shimv1.PSIData{TotalUs: d.Total, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &shimv1.PSI{Full: data(p.Full), Some: data(p.Some)}
}
