package daemon

import (
	"context"
	"errors"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/rootfs"
)

// imageVolumes mounts images for the manager of containers.
type imageVolumes struct {
	*rootfs.Roots
	label string // SELinux's, for all files
}

// Mount mounts the layers, and returns a directory of them.
func (v imageVolumes) Mount(ctx context.Context, id string, layers []string, sub, userns string) (string, error) {
	root, err := v.MountImage(ctx, id, layers, rootfs.Options{UserNS: userns, MountLabel: v.label})
	if err != nil || sub == "" {
		return root, err
	}
	source, err := rootfs.SubPath(root, sub)
	if err != nil {
		ctx, cancel := cleanup.Detach(ctx)
		defer cancel()
		return "", errors.Join(err, v.Remove(ctx, id))
	}
	return source, nil
}
