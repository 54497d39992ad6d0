package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/cri/convert"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// maxGrace is the longest time, in seconds, that a container is given to stop by itself: a day.
const maxGrace = 24 * 60 * 60

// containerLifecycle makes and ends containers. Stop and Remove are idempotent and nil for an unknown id.
type containerLifecycle interface {
	Create(ctx context.Context, cfg container.Config) (id string, err error)
	Start(ctx context.Context, id string) error
	Stop(ctx context.Context, id string, grace time.Duration) error
	Remove(ctx context.Context, id string) error
}

// containerReader looks at them. Status takes an id or an unambiguous prefix of one.
type containerReader interface {
	Status(ctx context.Context, id string) (container.Status, error)
	List(ctx context.Context) []container.Status
}

// containerUpdater changes what a container has.
type containerUpdater interface {
	Update(ctx context.Context, id string, resources *specs.LinuxResources) error
	ReopenLog(ctx context.Context, id string) error
	// Checkpoint writes a running container, which goes on, with notes into a new archive.
	Checkpoint(ctx context.Context, id, location string, notes map[string]any) error
}

// imageReader finds images.
type imageReader interface {
	Get(ctx context.Context, ref string) (image.Image, error)
}

// containerCalls are the calls about containers.
type containerCalls struct {
	containers containerLifecycle
	reader     containerReader
	updater    containerUpdater
	sandboxes  sandboxReader
	images     imageReader
	handlers   Handlers
	log        *slog.Logger
}

// CreateContainer makes a container in a sandbox that is ready.
func (c *containerCalls) CreateContainer(ctx context.Context, req *runtime.CreateContainerRequest) (*runtime.CreateContainerResponse, error) {
	if err := requireID("pod sandbox", req.PodSandboxId); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	pod, err := c.sandboxes.Status(ctx, req.PodSandboxId)
	if err != nil {
		return nil, fmt.Errorf("create container: pod %s: %w", req.PodSandboxId, err)
	}
	name := req.GetConfig().GetMetadata().GetName()
	if pod.State != sandbox.Ready {
		return nil, fmt.Errorf("create container %q: pod %s is %s, not ready: %w", name, pod.ID, pod.State, errdefs.ErrFailedPrecondition)
	}
	cfg, err := convert.Container(req.GetConfig(), pod)
	if err != nil {
		return nil, fmt.Errorf("create container %q: %w", name, err)
	}
	if err := mountable(cfg, c.handlers.ByName[pod.Config.Handler]); err != nil {
		return nil, fmt.Errorf("%w: create container %q: %w", crierrors.ErrRROUnsupported, name, err)
	}
	img, err := c.images.Get(ctx, req.Config.Image.Image)
	if err != nil {
		return nil, fmt.Errorf("create container %q: %w", name, err)
	}
	// The digest is what people know the image by; one that was built here has none.
	cfg.ImageRef = img.ID.String()
	if len(img.Digests) > 0 {
		cfg.ImageRef = img.Digests[0]
	}
	id, err := c.containers.Create(ctx, cfg)
	if err != nil {
		return nil, imageVolumeError(fmt.Errorf("create container %q: %w", name, err))
	}
	return &runtime.CreateContainerResponse{ContainerId: id}, nil
}

// mountable refuses mounts that the handler would not make as they are asked for.
func mountable(cfg container.Config, handler Handler) error {
	for _, m := range cfg.Mounts {
		if !m.RecursiveReadonly {
			continue
		}
		if err := handler.recursiveReadOnly(); err != nil {
			return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
	}
	return nil
}

// imageVolumeError marks an error of a volume that is an image for the kubelet, as the beginning of its text.
func imageVolumeError(err error) error {
	if errors.Is(err, container.ErrImageVolume) {
		return fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err)
	}
	return err
}

// StartContainer starts a created container.
func (c *containerCalls) StartContainer(ctx context.Context, req *runtime.StartContainerRequest) (*runtime.StartContainerResponse, error) {
	s, err := c.find(ctx, "start", req.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := c.containers.Start(ctx, s.ID); err != nil {
		return nil, fmt.Errorf("start container %s: %w", s.ID, err)
	}
	return &runtime.StartContainerResponse{}, nil
}

// StopContainer stops a container, by force when the grace period is over.
func (c *containerCalls) StopContainer(ctx context.Context, req *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	s, err := c.find(ctx, "stop", req.ContainerId)
	if errdefs.IsNotFound(err) {
		return &runtime.StopContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if req.Timeout < 0 {
		return nil, fmt.Errorf("stop container %s: %w", s.ID, invalid("timeout of %d seconds is negative", req.Timeout))
	}
	grace := time.Duration(min(req.Timeout, maxGrace)) * time.Second
	if err := c.containers.Stop(ctx, s.ID, grace); err != nil {
		return nil, fmt.Errorf("stop container %s: %w", s.ID, err)
	}
	return &runtime.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, killing it where it runs.
func (c *containerCalls) RemoveContainer(ctx context.Context, req *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	s, err := c.find(ctx, "remove", req.ContainerId)
	if errdefs.IsNotFound(err) {
		return &runtime.RemoveContainerResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := c.containers.Remove(ctx, s.ID); err != nil {
		return nil, fmt.Errorf("remove container %s: %w", s.ID, err)
	}
	return &runtime.RemoveContainerResponse{}, nil
}

// ReopenContainerLog opens the log file anew after it was rotated away.
func (c *containerCalls) ReopenContainerLog(ctx context.Context, req *runtime.ReopenContainerLogRequest) (*runtime.ReopenContainerLogResponse, error) {
	s, err := c.find(ctx, "reopen the log of", req.ContainerId)
	if err != nil {
		return nil, err
	}
	if s.State != container.Running {
		return nil, fmt.Errorf("reopen the log of container %s: it is %s, not running: %w", s.ID, s.State, errdefs.ErrFailedPrecondition)
	}
	if err := c.updater.ReopenLog(ctx, s.ID); err != nil {
		return nil, fmt.Errorf("reopen the log of container %s: %w", s.ID, err)
	}
	return &runtime.ReopenContainerLogResponse{}, nil
}

// UpdateContainerResources changes the limits of a container.
func (c *containerCalls) UpdateContainerResources(ctx context.Context, req *runtime.UpdateContainerResourcesRequest) (*runtime.UpdateContainerResourcesResponse, error) {
	s, err := c.find(ctx, "update", req.ContainerId)
	if err != nil {
		return nil, err
	}
	resources, err := convert.UpdatedResources(req, s)
	if err != nil {
		return nil, fmt.Errorf("update container %s: %w", s.ID, err)
	}
	if err := c.updater.Update(ctx, s.ID, resources); err != nil {
		return nil, fmt.Errorf("update container %s: %w", s.ID, err)
	}
	if convert.MovesOOMScore(req.Linux, s) {
		c.log.WarnContext(ctx, "limits were changed; the OOM score of a container that runs stays", logfields.Container, s.ID, logfields.Score, s.Config.OOMScore, logfields.Asked, req.Linux.OomScoreAdj)
	}
	return &runtime.UpdateContainerResourcesResponse{}, nil
}

func (c *containerCalls) find(ctx context.Context, verb, id string) (container.Status, error) {
	if err := requireID("container", id); err != nil {
		return container.Status{}, fmt.Errorf("%s container: %w", verb, err)
	}
	s, err := c.reader.Status(ctx, id)
	if err != nil {
		return container.Status{}, fmt.Errorf("%s container %s: %w", verb, id, err)
	}
	return s, nil
}

// ListContainers lists the containers that the filter lets through, the newest first.
func (c *containerCalls) ListContainers(ctx context.Context, req *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	return &runtime.ListContainersResponse{Containers: c.list(ctx, req.GetFilter())}, nil
}

func (c *containerCalls) list(ctx context.Context, filter *runtime.ContainerFilter) []*runtime.Container {
	all := slices.Clone(c.reader.List(ctx))
	slices.SortStableFunc(all, func(a, b container.Status) int { return b.Created.Compare(a.Created) })
	var list []*runtime.Container
	for _, s := range all {
		if !matchesContainer(s, filter) {
			continue
		}
		list = append(list, &runtime.Container{
			Id: s.ID, PodSandboxId: s.Config.SandboxID, Metadata: containerMetadata(s.Config),
			Image: imageSpec(s.Config), ImageRef: s.Config.ImageRef, ImageId: s.ImageID, State: containerState(s.State),
			CreatedAt: s.Created.UnixNano(), Labels: maps.Clone(s.Config.Labels), Annotations: maps.Clone(s.Config.Annotations),
		})
	}
	return list
}

func matchesContainer(s container.Status, f *runtime.ContainerFilter) bool {
	return strings.HasPrefix(s.ID, f.GetId()) &&
		strings.HasPrefix(s.Config.SandboxID, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.State.State == containerState(s.State)) &&
		matchesLabels(s.Config.Labels, f.GetLabelSelector())
}

// ContainerStatus describes a container.
func (c *containerCalls) ContainerStatus(ctx context.Context, req *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	s, err := c.find(ctx, "status of", req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &runtime.ContainerStatusResponse{Status: containerStatus(s)}
	if req.Verbose {
		resp.Info = map[string]string{}
		details := map[string]any{
			"sandboxID": s.Config.SandboxID, "pid": s.PID, "state": s.State, "config": s.Config, "user": s.User,
		}
		if err := addInfo(resp.Info, "info", details); err != nil {
			return nil, err
		}
	}
	return resp, nil
}
