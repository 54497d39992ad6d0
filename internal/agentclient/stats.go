package agentclient

import (
	"context"
	"math"
	"time"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/task"
)

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
	for _, i := range r.Interfaces {
		s.Interfaces = append(s.Interfaces, task.Interface{
			Name: clean(i.GetName(), maxName), RxBytes: i.GetRxBytes(), RxErrors: i.GetRxErrors(), TxBytes: i.GetTxBytes(), TxErrors: i.GetTxErrors(),
		})
	}
	for _, v := range r.Containers {
		s.Containers = append(s.Containers, task.ContainerStats{
			ID: clean(v.GetId(), maxName), CPU: cpuStats(v.GetCpu()), Memory: memoryStats(v.GetMemory()),
			Pids: v.GetPids().GetCurrent(), PidsLimit: v.GetPids().GetLimit(),
			WritableBytes: v.GetWritableBytes(), WritableInodes: v.GetWritableInodes(),
		})
	}
	return s, nil
}

func cpuStats(c *agentv1.CPUStats) task.CPU {
	return task.CPU{UsageNS: c.GetUsageNs(), PSI: psi(c.GetPsi())}
}

func memoryStats(m *agentv1.MemoryStats) task.Memory {
	return task.Memory{
		Usage: m.GetUsageBytes(), WorkingSet: m.GetWorkingSetBytes(), RSS: m.GetRssBytes(),
		Available: m.GetAvailableBytes(), Swap: m.GetSwapBytes(),
		PageFaults: m.GetPageFaults(), MajorPageFaults: m.GetMajorPageFaults(), PSI: psi(m.GetPsi()),
	}
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
