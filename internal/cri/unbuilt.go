package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unbuiltCalls answer, with a sentence, that something does not exist in this version.
type unbuiltCalls struct {
	runtime.UnimplementedRuntimeServiceServer
}

func notBuilt(what string) error {
	return fmt.Errorf("%s: %w", what, errdefs.ErrNotImplemented)
}

const (
	noCheckpoints = "checkpoints of pods and containers are not supported by this version"
	noMetrics     = "metrics over CRI are not supported by this version; the statistics calls are"
)

func (unbuiltCalls) CheckpointContainer(context.Context, *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	return nil, notBuilt(noCheckpoints)
}

func (unbuiltCalls) CheckpointPod(context.Context, *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	return nil, notBuilt(noCheckpoints)
}

func (unbuiltCalls) RestorePod(context.Context, *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	return nil, notBuilt(noCheckpoints)
}

func (unbuiltCalls) ListMetricDescriptors(context.Context, *runtime.ListMetricDescriptorsRequest) (*runtime.ListMetricDescriptorsResponse, error) {
	return nil, notBuilt(noMetrics)
}

func (unbuiltCalls) ListPodSandboxMetrics(context.Context, *runtime.ListPodSandboxMetricsRequest) (*runtime.ListPodSandboxMetricsResponse, error) {
	return nil, notBuilt(noMetrics)
}

func (unbuiltCalls) StreamPodSandboxMetrics(*runtime.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[runtime.StreamPodSandboxMetricsResponse]) error {
	return notBuilt(noMetrics)
}

func (unbuiltCalls) UpdatePodSandboxResources(context.Context, *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	return nil, notBuilt("resizing a running pod is not supported by this version; resize its containers, or make the pod anew")
}
