package hostpod

import (
	"cmp"
	"context"
	"path"

	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// units is the host's systemd, which makes cgroups as units.
type units interface {
	// StartScope moves a process into a scope that is made for it in a slice, which is made too if it is not there. Who is in
	// it may make groups in it; it ends with the last process.
	StartScope(ctx context.Context, name, slice string, pid int) error
}

// podGroup is the cgroup that a pod's monitor and containers are in, each in a group of its own.
type podGroup struct {
	// group is its path relative to each hierarchy's root; own: it is ours to make and to remove.
	group string
	own   bool
	// slice is where systemd makes it, as a scope; empty without systemd.
	slice string
}

func (l *Launcher) group(req sandbox.LaunchRequest) podGroup {
	parent := cmp.Or(req.Config.CgroupParent, l.CgroupParent)
	switch {
	case l.Units != nil:
		slice := path.Base(parent) // the kubelet names the whole path, which follows from the slice
		return podGroup{group: cgroup.Path(slice, cgroup.Scope(req.ID)), own: true, slice: slice}
	case req.Config.CgroupParent == "":
		return podGroup{group: cgroup.Path(parent, "pod"+req.ID), own: true}
	}
	return podGroup{group: cgroup.Path(parent, "")}
}

// cgroupsPath is a container's group as the runtime wants it named. With systemd it is in the scope, where systemd keeps its
// hands off: the runtime need not ask it, and what the kernel has counted is there until it was read.
func (g podGroup) cgroupsPath(id string) string { return path.Join("/", g.group, id) }

// monitorGroup is that of the pod's monitor.
func (p pod) monitorGroup() string { return cgroup.Path(p.group, "pistis-"+p.id) }

// adopt makes the pod's scope, with the monitor in it; nil where there is no systemd to make one.
func (l *Launcher) adopt(ctx context.Context, p pod) func(pid int) error {
	if p.slice == "" {
		return nil
	}
	return func(pid int) error { return l.Units.StartScope(ctx, cgroup.Scope(p.id), p.slice, pid) }
}

// removeOwn removes the pod's group if it is ours. What of it was systemd's is gone with the last process, or a moment later.
func (l *Launcher) removeOwn(ctx context.Context, p pod) error {
	if !p.own {
		return nil
	}
	group, err := cgroup.OfSpec("/" + p.group)
	if err != nil {
		return err
	}
	return removeGroup(ctx, group)
}

// removeGroup kills all processes of a cgroup and removes it.
func removeGroup(ctx context.Context, group *cgroup.Group) error {
	if err := group.Kill(ctx); err != nil {
		return err
	}
	return group.Remove(ctx)
}
