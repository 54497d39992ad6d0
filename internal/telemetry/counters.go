package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Counter is what a VMM has counted of its own work.
type Counter struct {
	Handler, Sandbox, Kind, Part, Direction string
	Value                                   uint64
}

// Counters tells what VMMs count, whenever the metrics are asked for. Kinds that are not known are left out.
func (m *Metrics) Counters(read func() []Counter) {
	c := &counters{read: read, families: map[string]family{}}
	for _, f := range []struct {
		kind, name, help string
		unit             float64
	}{
		{"bytes", "bytes_total", "Bytes that a VMM moved for its guest.", 1},
		{"operations", "operations_total", "Requests of disks and packets that a VMM served.", 1},
		{"microseconds", "operation_seconds_total", "Time that these took.", 1e-6},
		{"failures", "failures_total", "What went wrong in a VMM.", 1},
		{"throttled", "throttled_total", "How often a VMM made its guest wait for a rate.", 1},
		{"exits", "exits_total", "Exits of the guest's processors to the VMM.", 1},
	} {
		desc := prometheus.NewDesc("pistis_vmm_"+f.name, f.help, []string{"handler", "sandbox", "part", "direction"}, nil)
		c.families[f.kind] = family{desc, f.unit}
	}
	m.registry.MustRegister(c)
}

// counters is a collector of what VMMs count, by its kind.
type counters struct {
	read     func() []Counter
	families map[string]family
}

type family struct {
	desc *prometheus.Desc
	unit float64
}

func (c *counters) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range c.families {
		ch <- f.desc
	}
}

func (c *counters) Collect(ch chan<- prometheus.Metric) {
	for _, n := range c.read() {
		if f, ok := c.families[n.Kind]; ok {
			ch <- prometheus.MustNewConstMetric(f.desc, prometheus.CounterValue, float64(n.Value)*f.unit, n.Handler, n.Sandbox, n.Part, n.Direction)
		}
	}
}
