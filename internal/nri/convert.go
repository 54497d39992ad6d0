package nri

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// toPod describes a pod. There is no pid: its namespaces are pinned without a process, or are a VM's.
func toPod(s sandbox.Status) *api.PodSandbox {
	pod := &api.PodSandbox{
		Id: s.ID, Name: s.Config.Name, Uid: s.Config.UID, Namespace: s.Config.Namespace, RuntimeHandler: s.Config.Handler,
		Labels: maps.Clone(s.Config.Labels), Annotations: maps.Clone(s.Config.Annotations), Ips: slices.Clone(s.IPs),
		Linux: &api.LinuxPodSandbox{
			CgroupParent: s.Config.CgroupParent,
			PodOverhead:  podResources(s.Config.Overhead), PodResources: podResources(s.Config.Resources),
		},
	}
	if s.NetNS != "" {
		pod.Linux.Namespaces = []*api.LinuxNamespace{{Type: string(specs.NetworkNamespace), Path: s.NetNS}}
	}
	return pod
}

func podResources(r sandbox.Resources) *api.LinuxResources {
	out := &api.LinuxResources{Cpu: &api.LinuxCPU{}, Memory: &api.LinuxMemory{}}
	if r.CPUShares > 0 {
		out.Cpu.Shares = api.UInt64(r.CPUShares)
	}
	if r.CPUQuota != 0 {
		out.Cpu.Quota = api.Int64(r.CPUQuota)
	}
	if r.CPUPeriod > 0 {
		out.Cpu.Period = api.UInt64(r.CPUPeriod)
	}
	if r.MemoryLimit > 0 {
		out.Memory.Limit = api.Int64(r.MemoryLimit)
	}
	return out
}

// describe is toContainer for a container that was made, of which the spec lies in its bundle.
func (p *Plugins) describe(c container.Status) *api.Container {
	node := p.node.Load()
	if node == nil {
		return toContainer(c, &specs.Spec{}) // no plugin is connected yet
	}
	spec, err := node.containers.Spec(c.ID)
	if err != nil {
		p.log.Warn("NRI plugins are not told all of a container", logfields.Container, c.ID, logfields.Error, err)
		spec = &specs.Spec{}
	}
	return toContainer(c, spec)
}

func toContainer(c container.Status, spec *specs.Spec) *api.Container {
	out := &api.Container{
		Id: c.ID, PodSandboxId: c.Config.SandboxID, Name: c.Config.Name, State: toState(c.State), Pid: c.PID,
		Labels: maps.Clone(c.Config.Labels), Annotations: maps.Clone(spec.Annotations),
		CreatedAt: nanos(c.Created), StartedAt: nanos(c.Started), FinishedAt: nanos(c.Finished),
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message,
		Mounts: api.FromOCIMounts(spec.Mounts), Hooks: api.FromOCIHooks(spec.Hooks), Linux: &api.LinuxContainer{},
		Image: &api.Image{Name: c.Config.Image, Digest: c.ImageID},
	}
	if u := c.User; u != nil {
		out.User = &api.User{Uid: u.UID, Gid: u.GID, AdditionalGids: slices.Clone(u.AdditionalGIDs)}
	}
	if process := spec.Process; process != nil {
		out.Args, out.Env = slices.Clone(process.Args), slices.Clone(process.Env)
		for _, r := range process.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: r.Type, Hard: r.Hard, Soft: r.Soft})
		}
		if process.OOMScoreAdj != nil {
			out.Linux.OomScoreAdj = api.Int(*process.OOMScoreAdj)
		}
	}
	if linux := spec.Linux; linux != nil {
		out.Linux.Namespaces = api.FromOCILinuxNamespaces(linux.Namespaces)
		out.Linux.Devices = api.FromOCILinuxDevices(linux.Devices)
		out.Linux.Resources = api.FromOCILinuxResources(linux.Resources, nil)
		out.Linux.CgroupsPath = linux.CgroupsPath
		out.Linux.Sysctl = maps.Clone(linux.Sysctl)
		if linux.Seccomp != nil {
			out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(linux.Seccomp)
		}
	}
	if c.Config.Resources != nil { // as updated since it was created
		out.Linux.Resources = api.FromOCILinuxResources(c.Config.Resources, nil)
	}
	return out
}

func toState(s container.State) api.ContainerState {
	switch s {
	case container.Creating, container.Created, container.Starting:
		return api.ContainerState_CONTAINER_CREATED
	case container.Running:
		return api.ContainerState_CONTAINER_RUNNING
	case container.Exited, container.Removing:
		return api.ContainerState_CONTAINER_STOPPED
	}
	return api.ContainerState_CONTAINER_UNKNOWN
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// logger writes NRI's messages to the daemon's log.
type logger struct{ log *slog.Logger }

// setLog sets what NRI has one of for the whole process.
func setLog(log *slog.Logger) { nrilog.Set(logger{log}) }

func (l logger) Debugf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, "nri: "+fmt.Sprintf(format, args...))
}

func (l logger) Infof(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, "nri: "+fmt.Sprintf(format, args...)) // of each step, and of no interest when all is well
}

func (l logger) Warnf(ctx context.Context, format string, args ...any) {
	l.log.WarnContext(ctx, "nri: "+fmt.Sprintf(format, args...))
}

func (l logger) Errorf(ctx context.Context, format string, args ...any) {
	l.log.ErrorContext(ctx, "nri: "+fmt.Sprintf(format, args...))
}
