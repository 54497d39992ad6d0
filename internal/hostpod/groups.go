package hostpod

import (
	"context"
	"path"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// units is the host's systemd, which makes cgroups as units.
type units interface {
	// StartScope moves a process into a scope that is made for it in a slice, which is made too if it is not there.
	StartScope(ctx context.Context, name, slice string, pid int) error
	// Stop ends a unit with all processes in it. It is idempotent.
	Stop(ctx context.Context, name string) error
}

// podGroup is a pod's cgroup.
type podGroup struct {
	// group is its path relative to each hierarchy's root; own: it is ours to make and to remove.
	group string
	own   bool
	// systemd makes it, and those of its containers.
	systemd bool
	// parent is the group in the form in which specs of this pod name it: an absolute path, or a slice.
	parent string
}

func (l *Launcher) group(req sandbox.LaunchRequest) podGroup {
	g := podGroup{parent: req.Config.CgroupParent, own: req.Config.CgroupParent == "", systemd: l.Units != nil}
	switch own := "pod" + req.ID; {
	case !g.systemd && g.own:
		g.parent = "/" + cgroup.Path(l.CgroupParent, own)
	case g.systemd && g.own:
		g.parent = cgroup.Slice(l.CgroupParent, own)
	case g.systemd:
		g.parent = path.Base(g.parent) // the kubelet names the whole path, which follows from the slice
	}
	g.group = cgroup.Path(g.parent, "")
	return g
}

// cgroupsPath is a container's group as the runtime wants it named: for systemd slice:prefix:name, else a path.
func (g podGroup) cgroupsPath(id string) string {
	if g.systemd {
		return g.parent + ":pistis:" + id
	}
	return path.Join("/", g.parent, id)
}

// freeTasks keeps systemd from limiting the number of a container's processes (DefaultTasksMax=) where the client does not.
func (g podGroup) freeTasks(spec *specs.Spec) {
	r := spec.Linux.Resources
	if !g.systemd || r == nil || r.Pids != nil || r.Unified["pids.max"] != "" {
		return
	}
	unlimited := int64(-1)
	r.Pids = &specs.LinuxPids{Limit: &unlimited}
}

// monitorGroup is that of the pod's monitor.
func (p pod) monitorGroup() string {
	if p.systemd {
		return cgroup.Path(p.group, cgroup.Scope(p.id))
	}
	return cgroup.Path(p.group, "pistis-"+p.id)
}

// adopt puts the monitor into its scope; nil where there is no systemd to make one.
func (l *Launcher) adopt(ctx context.Context, p pod) func(pid int) error {
	if !p.systemd {
		return nil
	}
	return func(pid int) error { return l.Units.StartScope(ctx, cgroup.Scope(p.id), p.parent, pid) }
}

// removeOwn removes the pod's group if it is ours.
func (l *Launcher) removeOwn(ctx context.Context, p pod) error {
	if !p.own {
		return nil
	}
	if p.systemd {
		if err := l.Units.Stop(ctx, p.parent); err != nil {
			return err
		}
	}
	// On hierarchies where systemd makes none of the unit's, runtimes and monitors have.
	group, err := cgroup.OfSpec("/"+p.group, false)
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
