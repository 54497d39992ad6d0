package agentclient

import (
	"context"
	"time"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/stats"
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
	s := task.Stats{
		At: time.Now(), CPU: stats.DecodeCPU(r.GuestCpu), Memory: stats.DecodeMemory(r.GuestMemory), IOPSI: stats.DecodePSI(r.GuestIo),
		Interfaces: stats.DecodeInterfaces(r.Interfaces), Writable: stats.DecodeFileSystem(r.Writable),
	}
	for i := range s.Interfaces {
		s.Interfaces[i].Name = clean(s.Interfaces[i].Name, maxName)
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
	c := task.ContainerStats{
		ID: clean(v.GetId(), maxName), CPU: stats.DecodeCPU(v.GetCpu()), Memory: stats.DecodeMemory(v.GetMemory()), IO: stats.DecodeIO(v.GetIo()),
		Pids: v.GetPids().GetCurrent(), PidsLimit: v.GetPids().GetLimit(), Processes: v.GetProcesses(), OpenFiles: v.OpenFiles,
		WritableBytes: v.GetWritableBytes(), WritableInodes: v.GetWritableInodes(),
	}
	if c.IO != nil {
		for i, d := range c.IO.Devices {
			c.IO.Devices[i].Device = clean(d.Device, maxName)
		}
	}
	return c
}
