package cri

import (
	"maps"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/cri/convert"
	"github.com/pistis-run/pistis/internal/task"
)

func containerMetadata(cfg container.Config) *runtime.ContainerMetadata {
	return &runtime.ContainerMetadata{Name: cfg.Name, Attempt: cfg.Attempt}
}

func imageSpec(cfg container.Config) *runtime.ImageSpec {
	return &runtime.ImageSpec{Image: cfg.Image, UserSpecifiedImage: cfg.Image}
}

func containerState(s container.State) runtime.ContainerState {
	switch s {
	case container.Creating, container.Created, container.Starting:
		return runtime.ContainerState_CONTAINER_CREATED
	case container.Running:
		return runtime.ContainerState_CONTAINER_RUNNING
	case container.Exited, container.Removing:
		return runtime.ContainerState_CONTAINER_EXITED
	}
	return runtime.ContainerState_CONTAINER_UNKNOWN
}

// nanos is 0 for the zero time, as CRI has it.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func containerStatus(s container.Status) *runtime.ContainerStatus {
	status := &runtime.ContainerStatus{
		Id: s.ID, Metadata: containerMetadata(s.Config), State: containerState(s.State),
		CreatedAt: nanos(s.Created), StartedAt: nanos(s.Started), FinishedAt: nanos(s.Finished), ExitCode: s.ExitCode,
		Image: imageSpec(s.Config), ImageRef: s.Config.ImageRef, ImageId: s.ImageID,
		Reason: s.Reason, Message: s.Message,
		Labels: maps.Clone(s.Config.Labels), Annotations: maps.Clone(s.Config.Annotations), LogPath: s.LogPath,
		Resources:  &runtime.ContainerResources{Linux: convert.Resources(s.Config.Resources, s.Config.OOMScore)},
		User:       containerUser(s.User),
		StopSignal: convert.SignalNumber(s.StopSignal),
	}
	for _, m := range s.Config.Mounts {
		status.Mounts = append(status.Mounts, convert.Mount(m))
	}
	return status
}

func containerUser(u *task.User) *runtime.ContainerUser {
	if u == nil {
		return nil
	}
	user := &runtime.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, gid := range u.AdditionalGIDs {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(gid))
	}
	return &runtime.ContainerUser{Linux: user}
}
