package cgroup

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// Path is that of the group name below parent, relative to each hierarchy's root. A parent that systemd names
// (a-b.slice) lies where systemd puts it (a.slice/a-b.slice).
func Path(parent, name string) string {
	if strings.HasSuffix(parent, ".slice") && !strings.Contains(parent, "/") {
		parent = expandSlice(parent)
	}
	return strings.TrimPrefix(path.Join("/", parent, name), "/")
}

// SliceName adds the ending to the name of a slice, where it is not there.
func SliceName(name string) string { return strings.TrimSuffix(name, ".slice") + ".slice" }

// Scope names the scope of a pod.
func Scope(id string) string { return "pistis-" + id + ".scope" }

// CheckParent refuses a parent that a client has chosen for the other way of making groups: with systemd it must be a
// slice, without it a path. Empty is neither.
func CheckParent(parent string, systemd bool) error {
	if slices.Contains(strings.Split(parent, "/"), "..") {
		return fmt.Errorf("cgroup parent %q leads upwards: %w", parent, errdefs.ErrInvalidArgument)
	}
	slice := strings.HasSuffix(parent, ".slice")
	if parent == "" || slice == systemd {
		return nil
	}
	is, makes, want := "is not a slice", "systemd makes this node's cgroups", "systemd"
	if slice {
		is, makes, want = "is a slice of systemd's", "this node's cgroups are made without systemd", "cgroupfs"
	}
	return fmt.Errorf("cgroup parent %q %s, and %s: set the kubelet's cgroupDriver to %s, or change cgroup_driver in pistisd's configuration: %w",
		parent, is, makes, want, errdefs.ErrInvalidArgument)
}

// CheckSlice refuses a name that cannot be that of a slice, with or without the ending.
func CheckSlice(name string) error {
	// The dashes are between names.
	for part := range strings.SplitSeq(strings.TrimSuffix(name, ".slice"), "-") {
		if part == "" || strings.ContainsAny(part, "/:") {
			return fmt.Errorf("%q is no name of a slice, such as pistis or node-pods: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func expandSlice(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	var dirs []string
	for i, c := range name {
		if c == '-' {
			dirs = append(dirs, name[:i]+".slice")
		}
	}
	return filepath.Join(append(dirs, slice)...)
}
