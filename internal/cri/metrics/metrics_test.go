package metrics

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

func ptr[T any](v T) *T { return &v }

// measured has everything.
func measured() (sandbox.Status, []container.Status, task.Stats) {
	psi := &task.PSI{Some: task.PSIData{Total: 3e6}, Full: task.PSIData{Total: 2e6}}
	cpu := task.CPU{UsageNS: 7.9e9, PSI: psi, Detail: &task.CPUDetail{UserNS: 5e9, SystemNS: 2e9, Throttling: &task.Throttling{Periods: 9, Throttled: 4, ThrottledNS: 1e9}}}
	memory := task.Memory{
		Usage: 100, WorkingSet: 60, RSS: 50, Swap: 5, PageFaults: 11, MajorPageFaults: 1, PSI: psi,
		Detail: &task.MemoryDetail{Cache: 40, MappedFile: 8, Kernel: 9, ActiveFile: 10, InactiveFile: 12, Peak: ptr[uint64](200), LimitHits: ptr[uint64](13), OOMKills: ptr[uint64](2)},
	}
	pod := sandbox.Status{ID: "p1", Config: sandbox.Config{Identity: sandbox.Identity{Name: "web", Namespace: "default"}}}
	resources := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Period: ptr[uint64](100000), Quota: ptr[int64](50000), Shares: ptr[uint64](512)},
		Memory: &specs.LinuxMemory{Limit: ptr[int64](1 << 20), Swap: ptr[int64](1 << 21)},
	}
	containers := []container.Status{{ID: "c1", Started: time.Unix(1000, 0), Config: container.Config{Name: "nginx", Image: "example.com/nginx:1", Resources: resources}}}
	stats := task.Stats{
		At: time.Unix(2000, 0), CPU: cpu, Memory: memory, Writable: &task.FileSystem{Bytes: 1 << 30, Inodes: 1000, FreeInodes: 900},
		Interfaces: []task.Interface{{Name: "eth0", Rx: task.Traffic{Bytes: 1, Packets: 2, Errors: 3, Dropped: 4}, Tx: task.Traffic{Bytes: 5, Packets: 6, Errors: 7, Dropped: 8}}},
		Containers: []task.ContainerStats{
			{
				ID: "c1", CPU: cpu, Memory: memory, IO: &task.IO{Devices: []task.DeviceIO{{Device: "/dev/sda", ReadBytes: 1, WriteBytes: 2, Reads: 3, Writes: 4}}, PSI: psi},
				Pids: 5, PidsLimit: 99, Processes: 3, OpenFiles: ptr[uint64](1024), WritableBytes: 77, WritableInodes: 6,
			},
			{ID: "not ours"},
		},
	}
	return pod, containers, stats
}

// values maps "name{labels beside the common ones}" to what was sent.
func values(t *testing.T, table Table, list []*runtime.Metric, common []string) map[string]uint64 {
	t.Helper()
	keys := map[string][]string{}
	for _, d := range table.Descriptors() {
		keys[d.Name] = d.LabelKeys
	}
	out := map[string]uint64{}
	for _, m := range list {
		if len(keys[m.Name]) != len(m.LabelValues) || !slices.Equal(m.LabelValues[:len(common)], common) {
			t.Errorf("%s: labels %q for keys %q", m.Name, m.LabelValues, keys[m.Name])
		}
		if m.Timestamp != 0 {
			t.Errorf("%s: a timestamp for what is live", m.Name)
		}
		key := m.Name
		if extra := m.LabelValues[len(common):]; len(extra) > 0 {
			key += "{" + strings.Join(extra, ",") + "}"
		}
		if _, twice := out[key]; twice {
			t.Errorf("%s was sent twice", key)
		}
		out[key] = m.Value.Value
	}
	return out
}

func TestMetrics(t *testing.T) {
	table := New()
	got := table.Pod(measured())
	if got.PodSandboxId != "p1" || len(got.ContainerMetrics) != 1 || got.ContainerMetrics[0].ContainerId != "c1" {
		t.Fatalf("%v", got)
	}
	pod := values(t, table, got.Metrics, []string{"web", "default", "", "p1", ""})
	ctr := values(t, table, got.ContainerMetrics[0].Metrics, []string{"web", "default", "nginx", "c1", "example.com/nginx:1"})
	for _, want := range []struct {
		in    map[string]uint64
		key   string
		value uint64
	}{
		{pod, "container_network_receive_bytes_total{eth0}", 1}, {pod, "container_network_receive_packets_total{eth0}", 2},
		{pod, "container_network_receive_errors_total{eth0}", 3}, {pod, "container_network_receive_packets_dropped_total{eth0}", 4},
		{pod, "container_network_transmit_bytes_total{eth0}", 5}, {pod, "container_network_transmit_packets_dropped_total{eth0}", 8},
		{pod, "container_cpu_usage_seconds_total", 7}, {pod, "container_memory_working_set_bytes", 60},
		{pod, "container_memory_failures_total{pgfault,hierarchy}", 11},
		{ctr, "container_cpu_usage_seconds_total", 7}, {ctr, "container_cpu_user_seconds_total", 5}, {ctr, "container_cpu_system_seconds_total", 2},
		{ctr, "container_cpu_cfs_periods_total", 9}, {ctr, "container_cpu_cfs_throttled_periods_total", 4}, {ctr, "container_cpu_cfs_throttled_seconds_total", 1},
		{ctr, "container_memory_usage_bytes", 100}, {ctr, "container_memory_rss", 50}, {ctr, "container_memory_cache", 40}, {ctr, "container_memory_swap", 5},
		{ctr, "container_memory_max_usage_bytes", 200}, {ctr, "container_memory_failcnt", 13}, {ctr, "container_oom_events_total", 2},
		{ctr, "container_memory_failures_total{pgmajfault,container}", 1},
		{ctr, "container_pressure_cpu_waiting_seconds_total", 3}, {ctr, "container_pressure_io_stalled_seconds_total", 2},
		{ctr, "container_fs_usage_bytes{/}", 77}, {ctr, "container_fs_limit_bytes{/}", 1 << 30}, {ctr, "container_fs_inodes_free{/}", 900},
		{ctr, "container_fs_reads_bytes_total{/dev/sda}", 1}, {ctr, "container_fs_writes_total{/dev/sda}", 4},
		{ctr, "container_processes", 3}, {ctr, "container_threads", 5}, {ctr, "container_threads_max", 99}, {ctr, "container_ulimits_soft{max_open_files}", 1024},
		{ctr, "container_last_seen", 2000}, {ctr, "container_start_time_seconds", 1000},
		{ctr, "container_spec_cpu_quota", 50000}, {ctr, "container_spec_memory_limit_bytes", 1 << 20},
	} {
		if got, ok := want.in[want.key]; !ok || got != want.value {
			t.Errorf("%s: got %d (%v), want %d", want.key, got, ok, want.value)
		}
	}
}

// TestDescriptors: the names are unique, and each of them is sent where everything is measured; nothing else is.
func TestDescriptors(t *testing.T) {
	table := New()
	described := map[string]bool{}
	for _, d := range table.Descriptors() {
		if described[d.Name] || d.Help == "" {
			t.Errorf("%s: twice, or without help", d.Name)
		}
		described[d.Name] = true
	}
	sent := map[string]bool{}
	got := table.Pod(measured())
	for _, m := range slices.Concat(got.Metrics, got.ContainerMetrics[0].Metrics) {
		sent[m.Name] = true
	}
	if !maps.Equal(described, sent) {
		t.Errorf("described %d, sent %d", len(described), len(sent))
	}
}

// TestUnmeasured: what is not known is not sent as zero.
func TestUnmeasured(t *testing.T) {
	table := New()
	got := table.Pod(sandbox.Status{ID: "p1"}, []container.Status{{ID: "c1"}}, task.Stats{Containers: []task.ContainerStats{{ID: "c1"}}})
	sent := values(t, table, got.ContainerMetrics[0].Metrics, []string{"", "", "", "c1", ""})
	for _, name := range []string{
		"container_cpu_user_seconds_total", "container_cpu_cfs_periods_total", "container_memory_cache", "container_memory_failcnt", "container_oom_events_total",
		"container_memory_max_usage_bytes", "container_pressure_cpu_waiting_seconds_total", "container_fs_limit_bytes{/}", "container_processes",
		"container_spec_memory_limit_bytes", "container_start_time_seconds",
	} {
		if _, ok := sent[name]; ok {
			t.Errorf("%s was sent", name)
		}
	}
	if _, ok := sent["container_cpu_usage_seconds_total"]; !ok || len(got.Metrics) == 0 {
		t.Error("what is measured was not sent")
	}
}

func BenchmarkPod(b *testing.B) {
	table := New()
	pod, containers, stats := measured()
	for b.Loop() {
		table.Pod(pod, containers, stats)
	}
}
