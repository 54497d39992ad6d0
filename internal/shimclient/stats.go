package shimclient

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/stats"
	"github.com/pistis-run/pistis/internal/task"
)

// maxCounters is more than any VMM has.
const maxCounters = 100

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

// Counters reads what the VMM counts. They are counters with names, each once, whatever the shim says.
func (c *Client) Counters(ctx context.Context) ([]task.Counter, error) {
	var r shimv1.CountersResponse
	if err := c.call(ctx, shimService, "Counters", &shimv1.CountersRequest{}, &r); err != nil {
		return nil, err
	}
	if n := len(r.Counters); n > maxCounters {
		return nil, fmt.Errorf("sandbox %s: %d counters: %w", c.id, n, errdefs.ErrDataLoss)
	}
	var all []task.Counter
	seen := map[task.CounterName]bool{}
	for _, v := range r.Counters {
		name := task.CounterName{Kind: v.GetKind(), Part: v.GetPart(), Direction: v.GetDirection()}
		if seen[name] || !isWord(name.Kind) || !isWord(name.Part) || name.Direction != "" && !isWord(name.Direction) {
			return nil, fmt.Errorf("sandbox %s: counter %.60q: %w", c.id, name, errdefs.ErrDataLoss)
		}
		seen[name] = true
		all = append(all, task.Counter{CounterName: name, Value: v.Value})
	}
	return all, nil
}

// isWord: letters of ASCII, and not many.
func isWord(s string) bool {
	return s != "" && len(s) <= 20 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") == ""
}
