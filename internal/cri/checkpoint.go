package cri

import (
	"context"
	"fmt"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
)

const (
	// checkpointTimeout bounds a checkpoint for which the client names no time; maxCheckpointTimeout, in seconds, is a day.
	checkpointTimeout    = 10 * time.Minute
	maxCheckpointTimeout = 24 * 60 * 60
)

// checkpointConfig is the note config.dump of a checkpoint, in the words of other engines.
type checkpointConfig struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"`
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	RestoredAt      time.Time `json:"restoredTime"`
	Restored        bool      `json:"restored"`
}

// CheckpointContainer writes what a running container is into an archive; the container goes on.
func (c *containerCalls) CheckpointContainer(ctx context.Context, req *runtime.CheckpointContainerRequest) (*runtime.CheckpointContainerResponse, error) {
	s, err := c.find(ctx, "checkpoint", req.ContainerId)
	if err != nil {
		return nil, err
	}
	switch {
	case req.Location == "":
		err = invalid("the request has no location")
	case hasNUL(req.Location):
		err = invalid("location %q: it holds a NUL", req.Location)
	case req.Timeout < 0:
		err = invalid("timeout of %d seconds is negative", req.Timeout)
	default:
		err = c.checkpoint(ctx, s, req)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint container %s: %w", s.ID, err)
	}
	return &runtime.CheckpointContainerResponse{}, nil
}

func (c *containerCalls) checkpoint(ctx context.Context, s container.Status, req *runtime.CheckpointContainerRequest) error {
	pod, err := c.sandboxes.Status(ctx, s.Config.SandboxID)
	if err != nil {
		return err
	}
	timeout := checkpointTimeout
	if req.Timeout > 0 {
		timeout = time.Duration(min(req.Timeout, maxCheckpointTimeout)) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return c.updater.Checkpoint(ctx, s.ID, req.Location, map[string]any{
		"config.dump": checkpointConfig{
			ID: s.ID, Name: s.Config.Name, RootfsImage: s.Config.Image, RootfsImageRef: s.Config.ImageRef, RootfsImageName: s.Config.Image,
			OCIRuntime: pod.Config.Handler, CreatedTime: s.Created, CheckpointedAt: time.Now(),
		},
		"status.dump": containerStatus(s),
	})
}
