package oci

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// standardMounts are what every Linux container has.
func standardMounts(in Input) []specs.Mount {
	access := "ro"
	if in.Security.Privileged {
		access = "rw"
	}
	shm := specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}}
	if in.Sandbox.Shm != "" {
		shm = specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.Sandbox.Shm, Options: []string{"rbind", "nosuid", "noexec", "nodev", "rw"}}
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		shm,
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
}

// allMounts are the standard ones that the container does not replace, then its own, parents before children. The
// second value is the propagation that the root needs for them.
func allMounts(in Input) ([]specs.Mount, string, error) {
	own := map[string]bool{}
	for _, m := range in.Mounts {
		if !path.IsAbs(m.Destination) {
			return nil, "", fmt.Errorf("mount destination %q is not an absolute path: %w", m.Destination, errdefs.ErrInvalidArgument)
		}
		dst := path.Clean(m.Destination)
		if dst == "/" {
			return nil, "", fmt.Errorf("a mount over the container's root is not possible: %w", errdefs.ErrInvalidArgument)
		}
		own[dst] = true
	}
	var all []specs.Mount
	for _, m := range standardMounts(in) {
		if own[m.Destination] || own["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		all = append(all, m)
	}
	mounts := slices.Clone(in.Mounts)
	depth := func(m specs.Mount) int { return strings.Count(path.Clean(m.Destination), "/") }
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int { return cmp.Compare(depth(a), depth(b)) })
	return append(all, mounts...), rootPropagation(mounts), nil
}

func rootPropagation(mounts []specs.Mount) string {
	propagation := ""
	for _, m := range mounts {
		switch {
		case slices.Contains(m.Options, "rshared"):
			return "rshared"
		case slices.Contains(m.Options, "rslave"):
			propagation = "rslave"
		}
	}
	return propagation
}
