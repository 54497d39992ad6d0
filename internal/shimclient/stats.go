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
	for _, i := range r.Interfaces {
		s.Interfaces = append(s.Interfaces, task.Interface{
			Name: i.Name, RxBytes: i.RxBytes, RxErrors: i.RxErrors, TxBytes: i.TxBytes, TxErrors: i.TxErrors,
		})
	}
	for _, v := range r.Containers {
		s.Containers = append(s.Containers, task.ContainerStats{
			ID: v.Id, CPU: cpuStats(v.Cpu), Memory: memoryStats(v.Memory), Pids: v.Pids, PidsLimit: v.PidsLimit,
			WritableBytes: v.WritableBytes, WritableInodes: v.WritableInodes,
		})
	}
	return s, nil
}

func cpuStats(c *shimv1.CPUStats) task.CPU {
	return task.CPU{UsageNS: c.GetUsageNs(), PSI: psi(c.GetPsi())}
}

func memoryStats(m *shimv1.MemoryStats) task.Memory {
	return task.Memory{
		Usage: m.GetUsageBytes(), WorkingSet: m.GetWorkingSetBytes(), RSS: m.GetRssBytes(), Available: m.GetAvailableBytes(),
		Swap: m.GetSwapBytes(), PageFaults: m.GetPageFaults(), MajorPageFaults: m.GetMajorPageFaults(), PSI: psi(m.GetPsi()),
	}
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
