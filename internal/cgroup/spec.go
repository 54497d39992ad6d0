package cgroup

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// OfSpec opens the group that a runtime makes for linux.cgroupsPath of a runtime-spec; see [SpecPath]. It is on all
// hierarchies that there are.
func OfSpec(cgroupsPath string, systemd bool) (*Group, error) {
	path, err := SpecPath(cgroupsPath, systemd)
	if err != nil {
		return nil, err
	}
	return openOn(path, func([]string) bool { return true })
}

// SpecPath is where linux.cgroupsPath of a runtime-spec leads, relative to each hierarchy's root: a path, or with systemd
// a slice, a prefix and a name with colons between, of which systemd makes a scope. A path must be absolute: what a
// relative one means depends on the runtime.
func SpecPath(cgroupsPath string, systemd bool) (string, error) {
	if systemd {
		return scopePath(cgroupsPath)
	}
	if !strings.HasPrefix(cgroupsPath, "/") {
		return "", fmt.Errorf("cgroupsPath %q: it must be absolute: %w", cgroupsPath, errdefs.ErrInvalidArgument)
	}
	return cgroupsPath, nil
}

func scopePath(cgroupsPath string) (string, error) {
	parts := strings.Split(cgroupsPath, ":")
	slice, isSlice := strings.CutSuffix(parts[0], ".slice")
	if len(parts) != 3 || !isSlice || strings.Contains(cgroupsPath, "/") || parts[2] == "" {
		return "", fmt.Errorf("cgroupsPath %q: for systemd it is a slice, a prefix and a name, as kubepods.slice:pistis:id: %w", cgroupsPath, errdefs.ErrInvalidArgument)
	}
	scope := parts[2] + ".scope"
	if parts[1] != "" {
		scope = parts[1] + "-" + scope
	}
	if slice == "-" {
		return scope, nil
	}
	// a-b.slice lies in a.slice.
	var path, name string
	for part := range strings.SplitSeq(slice, "-") {
		if part == "" {
			return "", fmt.Errorf("cgroupsPath %q: %s is no name of a slice: %w", cgroupsPath, parts[0], errdefs.ErrInvalidArgument)
		}
		name += part
		path += "/" + name + ".slice"
		name += "-"
	}
	return path + "/" + scope, nil
}
