package shimclient

import (
	"context"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/stats"
	"github.com/pistis-run/pistis/internal/task"
)

// Stats reads the guest's statistics; no ids means all containers.
func (c *Client) Stats(ctx context.Context, containers ...string) (task.Stats, error) {
	var r shimv1.StatsResponse
	if err := c.call(ctx, shimService, "Stats", &shimv1.StatsRequest{Containers: containers}, &r); err != nil {
		return task.Stats{}, err
	}
	s := task.Stats{
		At: r.At.AsTime(), CPU: stats.DecodeCPU(r.Cpu), Memory: stats.DecodeMemory(r.Memory), IOPSI: stats.DecodePSI(r.Io),
		Interfaces: stats.DecodeInterfaces(r.Interfaces), Writable: stats.DecodeFileSystem(r.Writable),
	}
	for _, v := range r.Containers {
		s.Containers = append(s.Containers, task.ContainerStats{
			ID: v.Id, CPU: stats.DecodeCPU(v.Cpu), Memory: stats.DecodeMemory(v.Memory), IO: stats.DecodeIO(v.Io),
			Pids: v.Pids, PidsLimit: v.PidsLimit, Processes: v.Processes, OpenFiles: v.OpenFiles,
			WritableBytes: v.WritableBytes, WritableInodes: v.WritableInodes,
		})
	}
	return s, nil
}
