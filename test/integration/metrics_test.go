package integration

import (
	"errors"
	"io"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// metricsOf streams the metrics of all pods and returns those of one pod and one of its containers: the name and, in
// braces, the labels beside the common ones. All of them must have been described.
func (d *daemon) metricsOf(pod, container string) (ofPod, ofContainer map[string]uint64) {
	d.t.Helper()
	described, err := d.ListMetricDescriptors(d.call(), &runtime.ListMetricDescriptorsRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, m := range described.Descriptors {
		keys[m.Name] = m.LabelKeys
	}
	values := func(list []*runtime.Metric) map[string]uint64 {
		out := map[string]uint64{}
		for _, m := range list {
			if len(m.LabelValues) != len(keys[m.Name]) {
				d.t.Errorf("%s has labels %q for keys %q", m.Name, m.LabelValues, keys[m.Name])
				continue
			}
			key := m.Name
			if extra := m.LabelValues[5:]; len(extra) > 0 {
				key += "{" + strings.Join(extra, ",") + "}"
			}
			out[key] = m.Value.Value
		}
		return out
	}
	stream, err := d.StreamPodSandboxMetrics(d.call(), &runtime.StreamPodSandboxMetricsRequest{})
	for err == nil {
		var part *runtime.StreamPodSandboxMetricsResponse
		if part, err = stream.Recv(); err != nil {
			break
		}
		for _, p := range part.PodSandboxMetrics {
			if p.PodSandboxId != pod {
				continue
			}
			ofPod = values(p.Metrics)
			for _, c := range p.ContainerMetrics {
				if c.ContainerId == container {
					ofContainer = values(c.Metrics)
				}
			}
		}
	}
	if !errors.Is(err, io.EOF) || ofPod == nil || ofContainer == nil {
		d.t.Fatalf("metrics of pod and container: %v, %v, %v", ofPod, ofContainer, err)
	}
	return ofPod, ofContainer
}

// checkMetrics looks for what a pod of either kind must have.
func checkMetrics(t *testing.T, ofPod, ofContainer map[string]uint64) {
	t.Helper()
	for _, name := range []string{
		"container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_max_usage_bytes", "container_processes", "container_threads",
		"container_last_seen", "container_start_time_seconds", "container_ulimits_soft{max_open_files}", "container_fs_usage_bytes{/}", "container_fs_limit_bytes{/}",
		"container_fs_inodes_total{/}",
	} {
		if ofContainer[name] == 0 {
			t.Errorf("%s of the container is missing or zero", name)
		}
	}
	for _, name := range []string{
		"container_cpu_usage_seconds_total", "container_cpu_user_seconds_total", "container_memory_failcnt", "container_oom_events_total", "container_memory_cache",
	} {
		if _, ok := ofContainer[name]; !ok {
			t.Errorf("%s of the container is missing", name)
		}
	}
	for _, name := range []string{"container_network_receive_bytes_total{eth0}", "container_network_transmit_packets_total{eth0}", "container_memory_working_set_bytes"} {
		if _, ok := ofPod[name]; !ok {
			t.Errorf("%s of the pod is missing: %v", name, ofPod)
		}
	}
}
