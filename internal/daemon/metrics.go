package daemon

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
	"github.com/pistis-run/pistis/internal/version"
)

// metrics counts calls, and serves the counts where an address was given.
type metrics struct {
	registry *prometheus.Registry
	calls    *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		calls: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "pistis_cri_call_duration_seconds", Help: "Duration of calls on the CRI socket, by method and gRPC code.",
			Buckets: []float64{.001, .005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
		}, []string{"method", "code"}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "pistis_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version.Version},
	})
	build.Set(1)
	m.registry.MustRegister(m.calls, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// observe is called once for every call.
func (m *metrics) observe(method string, code codes.Code, d time.Duration) {
	m.calls.WithLabelValues(method, code.String()).Observe(d.Seconds())
}

// serve listens until stop is called, which waits. An empty address serves nothing.
func (m *metrics) serve(address string, log *slog.Logger) (stop func(context.Context) error, err error) {
	if address == "" {
		return func(context.Context) error { return nil }, nil
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("daemon: metrics: %w", err)
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
