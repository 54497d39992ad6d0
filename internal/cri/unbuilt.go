package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unbuiltCalls answer, with a sentence, that something does not exist in this version.
type unbuiltCalls struct {
	runtime.UnimplementedRuntimeServiceServer
}

func notBuilt(what string) error {
	return fmt.Errorf("%s: %w", what, errdefs.ErrNotImplemented)
}

const noCheckpoints = "checkpoints of pods are not supported by this version"

func (unbuiltCalls) CheckpointPod(context.Context, *runtime.CheckpointPodRequest) (*runtime.CheckpointPodResponse, error) {
	return nil, notBuilt(noCheckpoints)
}

func (unbuiltCalls) RestorePod(context.Context, *runtime.RestorePodRequest) (*runtime.RestorePodResponse, error) {
	return nil, notBuilt(noCheckpoints)
}
