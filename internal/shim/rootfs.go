package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/vm"
)

// maxLayers bounds the layers of one container.
const maxLayers = 256

// blockLayers takes the rootfs of a request as read-only ext4 images, the lowest first.
func blockLayers(mounts []*types.Mount) ([]vm.Disk, error) {
	if len(mounts) == 0 {
		return nil, fmt.Errorf("rootfs: no mounts: a VM container needs at least one read-only ext4 layer: %w", errdefs.ErrInvalidArgument)
	}
	if len(mounts) > maxLayers {
		return nil, fmt.Errorf("rootfs: %d layers, at most %d are possible: %w", len(mounts), maxLayers, errdefs.ErrInvalidArgument)
	}
	var layers []vm.Disk
	for _, m := range mounts {
		if m.Type != "ext4" || !slices.Contains(m.Options, "ro") {
			return nil, fmt.Errorf("rootfs: a mount of type %q from %s is no read-only ext4 layer: directory root file systems need the file share, "+
				"which is not built yet: %w", m.Type, m.Source, errdefs.ErrNotImplemented)
		}
		if !filepath.IsAbs(m.Source) {
			return nil, fmt.Errorf("rootfs: layer %q: the path must be absolute: %w", m.Source, errdefs.ErrInvalidArgument)
		}
		info, err := os.Stat(m.Source)
		if err != nil {
			return nil, fmt.Errorf("rootfs: layer: %w: %w", err, errdefs.ErrNotFound)
		}
		if !info.Mode().IsRegular() {
			return nil, fmt.Errorf("rootfs: layer %s is no regular file: block devices are not taken yet: %w", m.Source, errdefs.ErrNotImplemented)
		}
		layers = append(layers, vm.Disk{Path: filepath.Clean(m.Source), ReadOnly: true})
	}
	return layers, nil
}
