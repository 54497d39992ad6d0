package agent

import (
	"context"
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/cgroup"
	"github.com/pistis-run/pistis/internal/agent/guestnet"
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
		c, err := a.container(id)
		if err != nil {
			return nil, err
		}
		containers = append(containers, c)
	}
	resp := &agentv1.StatsResponse{At: timestamppb.Now()}
	for _, c := range containers {
		s := &agentv1.ContainerStats{Id: c.id, Cpu: c.group.CPU(), Memory: c.group.Memory(), Pids: c.group.PidsStats()}
		s.WritableBytes, s.WritableInodes = a.Roots.Usage(c.id)
		resp.Containers = append(resp.Containers, s)
	}
	var err error
	resp.GuestCpu, resp.GuestMemory = cgroup.Guest()
	resp.Interfaces, err = guestnet.Stats()
	return resp, err
}
