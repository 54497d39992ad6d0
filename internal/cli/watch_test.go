package cli

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// watched is a daemon in which something happens.
type watched struct {
	daemon
	stats []*runtime.PodSandboxStats
}

func (w *watched) GetContainerEvents(_ *runtime.GetEventsRequest, stream grpc.ServerStreamingServer[runtime.ContainerEventResponse]) error {
	pod := &runtime.PodSandboxStatus{Id: "pod1", Metadata: &runtime.PodSandboxMetadata{Name: "web", Namespace: "default"}}
	exited := &runtime.ContainerStatus{Id: "ctr1", Metadata: &runtime.ContainerMetadata{Name: "nginx"}, State: runtime.ContainerState_CONTAINER_EXITED, ExitCode: 3, Reason: "Error"}
	for _, e := range []*runtime.ContainerEventResponse{
		{ContainerId: "pod1", ContainerEventType: runtime.ContainerEventType_CONTAINER_STARTED_EVENT, PodSandboxStatus: pod},
		{ContainerId: "ctr1", ContainerEventType: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT, PodSandboxStatus: pod, ContainersStatuses: []*runtime.ContainerStatus{exited}},
		{ContainerId: "ctr1", ContainerEventType: runtime.ContainerEventType_CONTAINER_DELETED_EVENT, PodSandboxStatus: pod},
	} {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "the daemon is going down")
}

func (w *watched) ListPodSandboxStats(_ context.Context, _ *runtime.ListPodSandboxStatsRequest) (*runtime.ListPodSandboxStatsResponse, error) {
	return &runtime.ListPodSandboxStatsResponse{Stats: w.stats}, nil
}

func TestEvents(t *testing.T) {
	run := start(t, &watched{})
	out, err := run("events", "-f")
	if err == nil || !strings.Contains(err.Error(), "going down") {
		t.Errorf("got %v", err)
	}
	var got [][]string
	for line := range strings.Lines(out) {
		got = append(got, strings.Fields(line)[1:])
	}
	want := [][]string{
		{"EVENT", "KIND", "ID", "POD", "CONTAINER", "DETAIL"},
		{"started", "pod", "pod1", "default/web", "-"},
		{"stopped", "container", "ctr1", "default/web", "nginx", "exit", "code", "3,", "Error"},
		{"deleted", "container", "ctr1", "default/web", "nginx"},
	}
	if !slices.EqualFunc(got, want, slices.Equal[[]string]) {
		t.Errorf("got\n%s", out)
	}
	out, _ = run("events", "-o", "json")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var second struct {
		ContainersStatuses []struct{ ExitCode int }
	}
	if err := json.Unmarshal([]byte(lines[1]), &second); err != nil || len(lines) != 3 || second.ContainersStatuses[0].ExitCode != 3 {
		t.Errorf("%v in\n%s", err, out)
	}
}

func TestTop(t *testing.T) {
	number := func(n uint64) *runtime.UInt64Value { return &runtime.UInt64Value{Value: n} }
	pod := func(id string, nanoCores, memory uint64) *runtime.PodSandboxStats {
		cpu := &runtime.CpuUsage{UsageNanoCores: number(nanoCores)}
		return &runtime.PodSandboxStats{
			Attributes: &runtime.PodSandboxAttributes{Id: id, Metadata: &runtime.PodSandboxMetadata{Name: "pod-" + id, Namespace: "default"}},
			Linux: &runtime.LinuxPodSandboxStats{
				Cpu: cpu, Memory: &runtime.MemoryUsage{WorkingSetBytes: number(memory)}, Process: &runtime.ProcessUsage{ProcessCount: number(2)},
				Containers: []*runtime.ContainerStats{{
					Attributes: &runtime.ContainerAttributes{Id: "c" + id, Metadata: &runtime.ContainerMetadata{Name: "main"}}, Cpu: cpu,
					Memory: &runtime.MemoryUsage{WorkingSetBytes: number(memory)}, WritableLayer: &runtime.FilesystemUsage{UsedBytes: number(1024)},
				}},
			},
		}
	}
	run := start(t, &watched{stats: []*runtime.PodSandboxStats{pod("a", 1e8, 3<<20), pod("b", 2e9, 1<<20)}})
	for order, want := range map[string]string{"cpu": "b cb a ca", "memory": "a ca b cb"} {
		out, err := run("top", "--once", "--sort", order)
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for line := range strings.Lines(out) {
			ids = append(ids, strings.Fields(line)[0])
		}
		if got := strings.Join(ids[1:], " "); got != want || !strings.Contains(out, "2.00") || !strings.Contains(out, "3.0 MiB") || !strings.Contains(out, "default/pod-a") {
			t.Errorf("by %s:\n%s", order, out)
		}
	}
	out, err := run("top", "--once", "-o", "json")
	var list []map[string]any
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	if err != nil || len(list) != 2 {
		t.Errorf("%v in\n%s", err, out)
	}
	for _, args := range [][]string{{"top", "--sort", "size"}, {"top", "--interval", "1ms"}, {"events", "--follow=false"}} {
		if _, err := run(args...); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

func TestRates(t *testing.T) {
	usage := func(seconds int64, rx, more, tx uint64) *runtime.NetworkUsage {
		face := func(rx, tx uint64) *runtime.NetworkInterfaceUsage {
			return &runtime.NetworkInterfaceUsage{RxBytes: &runtime.UInt64Value{Value: rx}, TxBytes: &runtime.UInt64Value{Value: tx}}
		}
		return &runtime.NetworkUsage{Timestamp: seconds * int64(time.Second), DefaultInterface: face(rx, tx), Interfaces: []*runtime.NetworkInterfaceUsage{face(more, 0)}}
	}
	if rx, tx := rates(usage(12, 3000, 1048, 100), usage(10, 1000, 1000, 200)); rx != "1.0 KiB" || tx != "0 B" {
		t.Errorf("got %s and %s", rx, tx)
	}
	if rx, tx := rates(usage(1, 1, 1, 1), nil); rx != "-" || tx != "-" {
		t.Errorf("of one sample: %s and %s", rx, tx)
	}
}
