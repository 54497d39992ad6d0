package cgroup

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// OfSpec opens the group that a runtime makes for linux.cgroupsPath of a runtime-spec, which is relative to each hierarchy's
// root and must be absolute: what a relative one means depends on the runtime. It is on all hierarchies that there are.
func OfSpec(cgroupsPath string) (*Group, error) {
	if !strings.HasPrefix(cgroupsPath, "/") {
		return nil, fmt.Errorf("cgroupsPath %q: it must be absolute: %w", cgroupsPath, errdefs.ErrInvalidArgument)
	}
	return openOn(cgroupsPath, func([]string) bool { return true })
}
