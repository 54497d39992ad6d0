// Package stats translates statistics between internal/task and the messages of api/stats/v1, which travel from the guest to
// the shim and from the shim to the daemon.
//
// Numbers are taken as they come, but for shares of time: those are percent, whatever a guest says. Names are the caller's to
// bound and clean. It owns no state, and imports nothing else of ours.
package stats

import (
	"math"

	statsv1 "github.com/pistis-run/pistis/api/stats/v1"
	"github.com/pistis-run/pistis/internal/task"
)

// EncodeCPU makes a message of it.
func EncodeCPU(c task.CPU) *statsv1.CPUStats {
	out := &statsv1.CPUStats{UsageNs: c.UsageNS, Psi: EncodePSI(c.PSI)}
	if d := c.Detail; d != nil {
		out.Detail = &statsv1.CPUDetail{UserNs: d.UserNS, SystemNs: d.SystemNS}
		if t := d.Throttling; t != nil {
			out.Detail.Throttling = &statsv1.Throttling{Periods: t.Periods, Throttled: t.Throttled, ThrottledNs: t.ThrottledNS}
		}
	}
	return out
}

// DecodeCPU reads a message; nil is no usage, as in all that decodes here.
func DecodeCPU(c *statsv1.CPUStats) task.CPU {
	out := task.CPU{UsageNS: c.GetUsageNs(), PSI: DecodePSI(c.GetPsi())}
	if d := c.GetDetail(); d != nil {
		out.Detail = &task.CPUDetail{UserNS: d.UserNs, SystemNS: d.SystemNs}
		if t := d.Throttling; t != nil {
			out.Detail.Throttling = &task.Throttling{Periods: t.Periods, Throttled: t.Throttled, ThrottledNS: t.ThrottledNs}
		}
	}
	return out
}

// EncodeMemory makes a message of it.
func EncodeMemory(m task.Memory) *statsv1.MemoryStats {
	out := &statsv1.MemoryStats{
		UsageBytes: m.Usage, WorkingSetBytes: m.WorkingSet, RssBytes: m.RSS, AvailableBytes: m.Available, SwapBytes: m.Swap,
		PageFaults: m.PageFaults, MajorPageFaults: m.MajorPageFaults, Psi: EncodePSI(m.PSI),
	}
	if d := m.Detail; d != nil {
		out.Detail = &statsv1.MemoryDetail{
			CacheBytes: d.Cache, MappedFileBytes: d.MappedFile, KernelBytes: d.Kernel, ActiveFileBytes: d.ActiveFile, InactiveFileBytes: d.InactiveFile,
			PeakBytes: d.Peak, LimitHits: d.LimitHits, OomKills: d.OOMKills,
		}
	}
	return out
}

// DecodeMemory reads a message.
func DecodeMemory(m *statsv1.MemoryStats) task.Memory {
	out := task.Memory{
		Usage: m.GetUsageBytes(), WorkingSet: m.GetWorkingSetBytes(), RSS: m.GetRssBytes(), Available: m.GetAvailableBytes(),
		Swap: m.GetSwapBytes(), PageFaults: m.GetPageFaults(), MajorPageFaults: m.GetMajorPageFaults(), PSI: DecodePSI(m.GetPsi()),
	}
	if d := m.GetDetail(); d != nil {
		out.Detail = &task.MemoryDetail{
			Cache: d.CacheBytes, MappedFile: d.MappedFileBytes, Kernel: d.KernelBytes, ActiveFile: d.ActiveFileBytes, InactiveFile: d.InactiveFileBytes,
			Peak: d.PeakBytes, LimitHits: d.LimitHits, OOMKills: d.OomKills,
		}
	}
	return out
}

// EncodeIO makes a message of it; nil stays nil, as in all that has pointers here.
func EncodeIO(io *task.IO) *statsv1.IOStats {
	if io == nil {
		return nil
	}
	out := &statsv1.IOStats{Psi: EncodePSI(io.PSI)}
	for _, d := range io.Devices {
		out.Devices = append(out.Devices, &statsv1.DeviceIO{
			Device: d.Device, ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes, Reads: d.Reads, Writes: d.Writes,
		})
	}
	return out
}

// DecodeIO reads a message.
func DecodeIO(io *statsv1.IOStats) *task.IO {
	if io == nil {
		return nil
	}
	out := &task.IO{PSI: DecodePSI(io.Psi)}
	for _, d := range io.Devices {
		out.Devices = append(out.Devices, task.DeviceIO{
			Device: d.GetDevice(), ReadBytes: d.GetReadBytes(), WriteBytes: d.GetWriteBytes(), Reads: d.GetReads(), Writes: d.GetWrites(),
		})
	}
	return out
}

// EncodePSI makes a message of it.
func EncodePSI(p *task.PSI) *statsv1.PSI {
	if p == nil {
		return nil
	}
	data := func(d task.PSIData) *statsv1.PSIData {
		return &statsv1.PSIData{TotalUs: d.Total, Avg10: d.Avg10, Avg60: d.Avg60, Avg300: d.Avg300}
	}
	return &statsv1.PSI{Full: data(p.Full), Some: data(p.Some)}
}

// DecodePSI reads a message.
func DecodePSI(p *statsv1.PSI) *task.PSI {
	if p == nil {
		return nil
	}
	data := func(d *statsv1.PSIData) task.PSIData {
		return task.PSIData{Total: d.GetTotalUs(), Avg10: percent(d.GetAvg10()), Avg60: percent(d.GetAvg60()), Avg300: percent(d.GetAvg300())}
	}
	return &task.PSI{Full: data(p.Full), Some: data(p.Some)}
}

// percent keeps what cannot be a share out of arithmetic and JSON.
func percent(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return min(max(v, 0), 100)
}

// EncodeFileSystem makes a message of it.
func EncodeFileSystem(fs *task.FileSystem) *statsv1.FileSystem {
	if fs == nil {
		return nil
	}
	return &statsv1.FileSystem{Bytes: fs.Bytes, Inodes: fs.Inodes, FreeInodes: fs.FreeInodes}
}

// DecodeFileSystem reads a message.
func DecodeFileSystem(fs *statsv1.FileSystem) *task.FileSystem {
	if fs == nil {
		return nil
	}
	return &task.FileSystem{Bytes: fs.Bytes, Inodes: fs.Inodes, FreeInodes: fs.FreeInodes}
}

// EncodeInterfaces makes messages of them.
func EncodeInterfaces(list []task.Interface) []*statsv1.InterfaceStats {
	var out []*statsv1.InterfaceStats
	for _, i := range list {
		out = append(out, &statsv1.InterfaceStats{
			Name: i.Name, RxBytes: i.Rx.Bytes, RxPackets: i.Rx.Packets, RxErrors: i.Rx.Errors, RxDropped: i.Rx.Dropped,
			TxBytes: i.Tx.Bytes, TxPackets: i.Tx.Packets, TxErrors: i.Tx.Errors, TxDropped: i.Tx.Dropped,
		})
	}
	return out
}

// DecodeInterfaces reads messages.
func DecodeInterfaces(list []*statsv1.InterfaceStats) []task.Interface {
	var out []task.Interface
	for _, i := range list {
		out = append(out, task.Interface{
			Name: i.GetName(),
			Rx:   task.Traffic{Bytes: i.GetRxBytes(), Packets: i.GetRxPackets(), Errors: i.GetRxErrors(), Dropped: i.GetRxDropped()},
			Tx:   task.Traffic{Bytes: i.GetTxBytes(), Packets: i.GetTxPackets(), Errors: i.GetTxErrors(), Dropped: i.GetTxDropped()},
		})
	}
	return out
}
