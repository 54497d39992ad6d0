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
	"github.com/pistis-run/pistis/internal/stats"
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
	resp := &agentv1.StatsResponse{At: timestamppb.Now(), Writable: stats.EncodeFileSystem(a.Roots.FileSystem())}
	for _, c := range containers {
		usage, err := cgroup.Usage(c.id)
		if err != nil && !errdefs.IsNotFound(err) {
			a.Log.Warn("a container is missing from the statistics", logfields.Container, c.id, logfields.Error, err)
			continue
		}
		usage.WritableBytes, usage.WritableInodes = a.Roots.Usage(c.id)
		resp.Containers = append(resp.Containers, containerStats(usage))
	}
	cpu, memory, io := cgroup.Guest()
	resp.GuestCpu, resp.GuestMemory, resp.GuestIo = stats.EncodeCPU(cpu), stats.EncodeMemory(memory), stats.EncodePSI(io)
	var err error
	resp.Interfaces, err = guestnet.Stats()
	return resp, err
}

func containerStats(c task.ContainerStats) *agentv1.ContainerStats {
	return &agentv1.ContainerStats{
		Id: c.ID, Cpu: stats.EncodeCPU(c.CPU), Memory: stats.EncodeMemory(c.Memory), Io: stats.EncodeIO(c.IO),
		Pids: &agentv1.PidsStats{Current: c.Pids, Limit: c.PidsLimit}, Processes: c.Processes, OpenFiles: c.OpenFiles,
		WritableBytes: c.WritableBytes, WritableInodes: c.WritableInodes,
	}
}
