package cri

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/cri/metrics"
)

// metricCalls are the calls about metrics, which are made of the same statistics.
type metricCalls struct {
	stats *statsCalls
	table metrics.Table
}

// ListMetricDescriptors describes all metrics.
func (c *metricCalls) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	return &runtime.ListMetricDescriptorsResponse{Descriptors: c.table.Descriptors()}, nil
}

// ListPodSandboxMetrics answers for all ready sandboxes. One that does not answer is left out, and logged.
func (c *metricCalls) ListPodSandboxMetrics(ctx context.Context, _ *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	list, err := c.list(ctx)
	return &runtime.ListPodSandboxMetricsResponse{PodMetrics: list}, err
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in several messages.
func (c *metricCalls) StreamPodSandboxMetrics(_ *runtime.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	list, err := c.list(stream.Context())
	if err != nil {
		return fmt.Errorf("metrics: %w", err)
	}
	return sendList(list, func(part []*runtime.PodSandboxMetrics) error {
		return stream.Send(&runtime.StreamPodSandboxMetricsResponse{PodSandboxMetrics: part})
	})
}

func (c *metricCalls) list(ctx context.Context) ([]*runtime.PodSandboxMetrics, error) {
	pods := c.stats.ready(ctx, nil)
	answers := c.stats.ask(ctx, whole(pods))
	running := c.stats.running(ctx)
	list := make([]*runtime.PodSandboxMetrics, 0, len(answers))
	for id, stats := range answers {
		list = append(list, c.table.Pod(pods[id], running[id], stats))
	}
	return list, ctx.Err()
}
