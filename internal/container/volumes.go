package container

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// ErrImageVolume is in every error of a volume that is an image.
var ErrImageVolume = errors.New("image volume")

// volumes mounts images read-only. A mount outlives the daemon, until Remove.
type volumes interface {
	// Mount returns a directory of the mounted layers, the lowest first. userns, where set, is the user namespace into
	// which owners are mapped. On error nothing is left.
	Mount(ctx context.Context, id string, layers []string, sub, userns string) (source string, err error)
	Remove(ctx context.Context, id string) error // idempotent
	Sweep(ctx context.Context, keep func(id string) bool) error
}

// volume is an image that is mounted into a container.
type volume struct {
	id    string
	mount Mount
	image image.Image
}

// volumeID names the volume at an index of the container's mounts.
func volumeID(container string, index int) string { return fmt.Sprintf("%s-%d", container, index) }

// ownerOfVolume is the container of a volume.
func ownerOfVolume(id string) string {
	owner, _, _ := strings.Cut(id, "-")
	return owner
}

// unmounted is the source that a volume has in a spec until it is mounted.
func unmounted(id string) string { return path.Join("/", id) }

func volumeError(m Mount, err error) error {
	return fmt.Errorf("%w at %s: %s: %w", ErrImageVolume, m.ContainerPath, m.Image, err)
}

// findVolumes finds the images that a container mounts.
func (m *Manager) findVolumes(ctx context.Context, rec record) ([]volume, error) {
	var found []volume
	for i, mount := range rec.Config.Mounts {
		if mount.Image == "" {
			continue
		}
		img, err := m.images.Get(ctx, mount.Image)
		if errdefs.IsNotFound(err) {
			err = fmt.Errorf("it is not on this node, pull it first: %w", err)
		}
		if err == nil {
			err = m.images.Allowed(ctx, mount.Image, img)
		}
		if err != nil {
			return nil, volumeError(mount, err)
		}
		found = append(found, volume{id: volumeID(rec.ID, i), mount: mount, image: img})
	}
	return found, nil
}

// mountVolumes mounts images, which the container uses already, and puts them into its spec.
func (m *Manager) mountVolumes(ctx context.Context, list []volume, pod sandbox.Status, spec *specs.Spec) error {
	for _, v := range list {
		layers, err := m.dirs.Ensure(ctx, v.image)
		if err != nil {
			return volumeError(v.mount, err)
		}
		userns := pod.UserNS
		if pod.VM {
			userns = "" // its owners are mapped in the guest, if at all
		}
		source, err := m.volumes.Mount(ctx, v.id, layers, v.mount.SubPath, userns)
		if err != nil {
			return volumeError(v.mount, err)
		}
		for i := range spec.Mounts {
			if spec.Mounts[i].Source == unmounted(v.id) {
				spec.Mounts[i].Source = source
			}
		}
	}
	return nil
}

// removeVolumes unmounts all images of a container.
func (m *Manager) removeVolumes(ctx context.Context, rec record) error {
	var errs []error
	for i, mount := range rec.Config.Mounts {
		if mount.Image == "" {
			continue
		}
		if err := m.volumes.Remove(ctx, volumeID(rec.ID, i)); err != nil {
			errs = append(errs, volumeError(mount, err))
		}
	}
	return errors.Join(errs...)
}
