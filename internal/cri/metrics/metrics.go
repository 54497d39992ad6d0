package metrics

import (
	"slices"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

// Table is all metrics that there are.
type Table struct{ rows []row }

// row is one metric.
type row struct {
	name, help string
	kind       runtime.MetricType
	// labels are the keys beside the common ones.
	labels []string
	// read gives each value with those labels' values to emit.
	read func(s sample, emit emit)
}

type emit func(value uint64, labels ...string)

// sample is what metrics are read from: a pod as a whole, or one of its containers.
type sample struct {
	cpu    task.CPU
	memory task.Memory
	// interfaces are a pod's; what follows is a container's.
	interfaces []task.Interface
	stats      *task.ContainerStats
	status     container.Status
	writable   *task.FileSystem
	at         time.Time
}

// commonLabels are the keys of every metric. A pod's own metrics have no container and no image.
func commonLabels() []string { return []string{"pod", "namespace", "container", "id", "image"} }

// New makes the table.
func New() Table {
	return Table{slices.Concat(cpuRows(), memoryRows(), pressureRows(), networkRows(), ioRows(), fileSystemRows(), processRows(), specRows())}
}

// Descriptors of all metrics. They never change.
func (t Table) Descriptors() []*runtime.MetricDescriptor {
	list := make([]*runtime.MetricDescriptor, 0, len(t.rows))
	for _, r := range t.rows {
		list = append(list, &runtime.MetricDescriptor{Name: r.name, Help: r.help, LabelKeys: append(commonLabels(), r.labels...)})
	}
	return list
}

// Pod returns the metrics of a pod and of those of its containers that stats knows.
func (t Table) Pod(pod sandbox.Status, containers []container.Status, stats task.Stats) *runtime.PodSandboxMetrics {
	cfg := pod.Config
	out := &runtime.PodSandboxMetrics{
		PodSandboxId: pod.ID,
		Metrics: t.read([]string{cfg.Name, cfg.Namespace, "", pod.ID, ""},
			sample{cpu: stats.CPU, memory: stats.Memory, interfaces: stats.Interfaces, at: stats.At}),
	}
	for i := range stats.Containers {
		one := &stats.Containers[i]
		at := slices.IndexFunc(containers, func(c container.Status) bool { return c.ID == one.ID })
		if at < 0 {
			continue
		}
		c := containers[at]
		out.ContainerMetrics = append(out.ContainerMetrics, &runtime.ContainerMetrics{
			ContainerId: c.ID,
			Metrics: t.read([]string{cfg.Name, cfg.Namespace, c.Config.Name, c.ID, c.Config.Image},
				sample{cpu: one.CPU, memory: one.Memory, stats: one, status: c, writable: stats.Writable, at: stats.At}),
		})
	}
	return out
}

// read makes all metrics that the sample has. They are of this moment, which CRI wants to be said by no timestamp.
func (t Table) read(common []string, s sample) []*runtime.Metric {
	list := make([]*runtime.Metric, 0, len(t.rows))
	for _, r := range t.rows {
		r.read(s, func(value uint64, labels ...string) {
			values := common
			if len(labels) > 0 {
				values = append(slices.Clip(common), labels...)
			}
			list = append(list, &runtime.Metric{Name: r.name, MetricType: r.kind, LabelValues: values, Value: &runtime.UInt64Value{Value: value}})
		})
	}
	return list
}
