package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"

	"github.com/pistis-run/pistis/internal/logfields"
)

// Metrics are counts, and serve them where an address is given. The methods may be called from any goroutine.
type Metrics struct {
	registry      *prometheus.Registry
	calls         *prometheus.HistogramVec
	pulls         *prometheus.HistogramVec
	pulled        prometheus.Counter
	boots         *prometheus.HistogramVec
	found, solved *prometheus.CounterVec
}

// NewMetrics are those of a daemon of this version.
func NewMetrics(version string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pistis_cri_call_duration_seconds", Help: "Duration of calls on the CRI socket, by method, gRPC code and the pod's runtime handler.",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
		}, []string{"method", "code", "handler"}),
		pulls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pistis_image_pull_duration_seconds", Help: "Duration of image pulls, by result: ok, or the class of the error.",
			Buckets: []float64{.1, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900},
		}, []string{"result"}),
		pulled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "pistis_image_pull_bytes_total", Help: "Bytes of the blobs of pulled images, those that were on the node already included.",
		}),
		boots: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pistis_vm_boot_duration_seconds", Help: "Duration of each phase of the start of a pod's microVM.",
			Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"phase"}),
		found: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pistis_leaks_found_total", Help: "Things of pods that nobody knows any more, found when the daemon started.",
		}, []string{"kind"}),
		solved: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "pistis_leaks_cleaned_total", Help: "Those of them that were removed.",
		}, []string{"kind"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "pistis_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m.registry.MustRegister(m.calls, m.pulls, m.pulled, m.boots, m.found, m.solved, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Call is called once for every call on the CRI socket. handler is empty for a call that is about no pod.
func (m *Metrics) Call(method, handler string, code codes.Code, d time.Duration) {
	m.calls.WithLabelValues(method, code.String(), handler).Observe(d.Seconds())
}

// Pull is called once for every pull, however many wait for it. result is a class of errors, or "ok".
func (m *Metrics) Pull(result string, bytes int64, d time.Duration) {
	m.pulls.WithLabelValues(result).Observe(d.Seconds())
	m.pulled.Add(float64(max(0, bytes)))
}

// Boot is called for every phase of the start of a VM.
func (m *Metrics) Boot(phase string, d time.Duration) {
	m.boots.WithLabelValues(phase).Observe(d.Seconds())
}

// Leak is called for everything that was found to be nobody's, with the error of its removal.
func (m *Metrics) Leak(kind string, err error) {
	m.found.WithLabelValues(kind).Inc()
	if err == nil {
		m.solved.WithLabelValues(kind).Inc()
	}
}

// State is a runtime handler and the state of a pod or container.
type State struct{ Handler, State string }

// Census counts pods and containers, whenever the metrics are asked for.
func (m *Metrics) Census(count func() (pods, containers map[State]int)) {
	labels := []string{"handler", "state"}
	m.registry.MustRegister(&census{
		count:      count,
		pods:       prometheus.NewDesc("pistis_pods", "Pods on this node.", labels, nil),
		containers: prometheus.NewDesc("pistis_containers", "Containers on this node.", labels, nil),
	})
}

// census is a collector of what there is.
type census struct {
	count            func() (pods, containers map[State]int)
	pods, containers *prometheus.Desc
}

func (c *census) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.pods
	ch <- c.containers
}

func (c *census) Collect(ch chan<- prometheus.Metric) {
	pods, containers := c.count()
	for desc, counts := range map[*prometheus.Desc]map[State]int{c.pods: pods, c.containers: containers} {
		for s, n := range counts {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), s.Handler, s.State)
		}
	}
}

// Serve listens until stop is called, which waits. An empty address serves nothing.
func (m *Metrics) Serve(address string, log *slog.Logger) (stop func(context.Context) error, err error) {
	if address == "" {
		return func(context.Context) error { return nil }, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics server ended", logfields.Error, err)
		}
	})
	log.Info("serving metrics", logfields.Address, listener.Addr().String())
	return func(ctx context.Context) error {
		err := server.Shutdown(ctx)
		served.Wait()
		return err
	}, nil
}
