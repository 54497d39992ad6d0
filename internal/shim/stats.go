package shim

import (
	"context"

	"google.golang.org/protobuf/types/known/timestamppb"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/stats"
)

// Stats reads the guest's statistics. Only containers of this sandbox are in them, whatever the guest says.
func (x extras) Stats(ctx context.Context, r *shimv1.StatsRequest) (*shimv1.StatsResponse, error) {
	v, err := x.s.machine()
	if err != nil {
		return nil, err
	}
	s, err := v.Agent().Stats(ctx, r.Containers...)
	if err != nil {
		return nil, err
	}
	answer := &shimv1.StatsResponse{
		At: timestamppb.New(s.At), Cpu: stats.EncodeCPU(s.CPU), Memory: stats.EncodeMemory(s.Memory), Io: stats.EncodePSI(s.IOPSI),
		Interfaces: stats.EncodeInterfaces(s.Interfaces), Writable: stats.EncodeFileSystem(s.Writable),
	}
	for _, c := range s.Containers {
		if _, err := x.s.container(c.ID); err != nil {
			continue
		}
		answer.Containers = append(answer.Containers, &shimv1.ContainerStats{
			Id: c.ID, Cpu: stats.EncodeCPU(c.CPU), Memory: stats.EncodeMemory(c.Memory), Io: stats.EncodeIO(c.IO),
			Pids: c.Pids, PidsLimit: c.PidsLimit, Processes: c.Processes, OpenFiles: c.OpenFiles,
			WritableBytes: c.WritableBytes, WritableInodes: c.WritableInodes,
		})
	}
	return answer, nil
}

// Counters reads what the VMM counts.
func (x extras) Counters(ctx context.Context, _ *shimv1.CountersRequest) (*shimv1.CountersResponse, error) {
	v, err := x.s.machine()
	if err != nil {
		return nil, err
	}
	counters, err := v.Counters(ctx)
	if err != nil {
		return nil, err
	}
	answer := &shimv1.CountersResponse{}
	for _, c := range counters {
		answer.Counters = append(answer.Counters, &shimv1.Counter{Kind: string(c.Kind), Part: c.Part, Direction: c.Direction, Value: c.Value})
	}
	return answer, nil
}
