package nri

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// editor changes a spec for NRI's generator. Specs of ours have all the parts.
type editor struct{ spec *specs.Spec }

var _ generate.UnderlyingGenerator = (*editor)(nil)

func (e *editor) Spec() *specs.Spec { return e.spec }

func (e *editor) AddAnnotation(key, value string) {
	if e.spec.Annotations == nil {
		e.spec.Annotations = map[string]string{}
	}
	e.spec.Annotations[key] = value
}

func (e *editor) RemoveAnnotation(key string)   { delete(e.spec.Annotations, key) }
func (e *editor) SetProcessArgs(args []string)  { e.spec.Process.Args = args }
func (e *editor) ClearProcessEnv()              { e.spec.Process.Env = nil }
func (e *editor) SetProcessOOMScoreAdj(adj int) { e.spec.Process.OOMScoreAdj = &adj }

func (e *editor) AddProcessEnv(name, value string) {
	env := slices.DeleteFunc(slices.Clone(e.spec.Process.Env), func(v string) bool { return strings.HasPrefix(v, name+"=") })
	e.spec.Process.Env = append(env, name+"="+value)
}

func (e *editor) hooks() *specs.Hooks {
	if e.spec.Hooks == nil {
		e.spec.Hooks = &specs.Hooks{}
	}
	return e.spec.Hooks
}

func (e *editor) AddPreStartHook(h specs.Hook) {
	//nolint:staticcheck // plugins may still ask for it, and runtimes still know it
	e.hooks().Prestart = append(e.hooks().Prestart, h)
}
func (e *editor) AddPostStartHook(h specs.Hook) {
	e.hooks().Poststart = append(e.hooks().Poststart, h)
}
func (e *editor) AddPostStopHook(h specs.Hook) { e.hooks().Poststop = append(e.hooks().Poststop, h) }

func (e *editor) Mounts() []specs.Mount  { return e.spec.Mounts }
func (e *editor) ClearMounts()           { e.spec.Mounts = nil }
func (e *editor) AddMount(m specs.Mount) { e.spec.Mounts = append(e.spec.Mounts, m) }
func (e *editor) RemoveMount(dest string) {
	e.spec.Mounts = slices.DeleteFunc(slices.Clone(e.spec.Mounts), func(m specs.Mount) bool { return m.Destination == dest })
}

func (e *editor) SetLinuxRootPropagation(p string) error {
	e.spec.Linux.RootfsPropagation = p
	return nil
}

func (e *editor) AddDevice(d specs.LinuxDevice) {
	e.spec.Linux.Devices = append(e.spec.Linux.Devices, d)
}
func (e *editor) RemoveDevice(path string) {
	e.spec.Linux.Devices = slices.DeleteFunc(slices.Clone(e.spec.Linux.Devices), func(d specs.LinuxDevice) bool { return d.Path == path })
}

func (e *editor) AddLinuxSysctl(key, value string) {
	if e.spec.Linux.Sysctl == nil {
		e.spec.Linux.Sysctl = map[string]string{}
	}
	e.spec.Linux.Sysctl[key] = value
}
func (e *editor) RemoveLinuxSysctl(key string) { delete(e.spec.Linux.Sysctl, key) }

// What belongs to the pod was refused before.

func (e *editor) SetLinuxCgroupsPath(path string) { e.spec.Linux.CgroupsPath = path }
func (e *editor) AddOrReplaceLinuxNamespace(ns, _ string) error {
	return fmt.Errorf("namespace %s: %w", ns, errdefs.ErrNotImplemented)
}
func (e *editor) RemoveLinuxNamespace(ns string) error {
	return fmt.Errorf("namespace %s: %w", ns, errdefs.ErrNotImplemented)
}

func (e *editor) resources() *specs.LinuxResources {
	if e.spec.Linux.Resources == nil {
		e.spec.Linux.Resources = &specs.LinuxResources{}
	}
	return e.spec.Linux.Resources
}

// cpu and memory are fresh ones: the old may be those of the container's configuration.
func (e *editor) cpu() *specs.LinuxCPU {
	r := e.resources()
	fresh := specs.LinuxCPU{}
	if r.CPU != nil {
		fresh = *r.CPU
	}
	r.CPU = &fresh
	return r.CPU
}

func (e *editor) memory() *specs.LinuxMemory {
	r := e.resources()
	fresh := specs.LinuxMemory{}
	if r.Memory != nil {
		fresh = *r.Memory
	}
	r.Memory = &fresh
	return r.Memory
}

// mergeMemory sets what is set.
func (e *editor) mergeMemory(m specs.LinuxMemory) {
	to := e.memory()
	for _, v := range []struct{ to, from **int64 }{
		{&to.Limit, &m.Limit}, {&to.Reservation, &m.Reservation}, {&to.Swap, &m.Swap}, {&to.Kernel, &m.Kernel}, {&to.KernelTCP, &m.KernelTCP},
	} {
		if *v.from != nil {
			*v.to = *v.from
		}
	}
	if m.Swappiness != nil {
		to.Swappiness = m.Swappiness
	}
	if m.DisableOOMKiller != nil {
		to.DisableOOMKiller = m.DisableOOMKiller
	}
	if m.UseHierarchy != nil {
		to.UseHierarchy = m.UseHierarchy
	}
}

func (e *editor) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	e.resources().Devices = append(e.resources().Devices, specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (e *editor) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	list := slices.DeleteFunc(slices.Clone(e.resources().HugepageLimits), func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size })
	e.resources().HugepageLimits = append(list, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}

func (e *editor) AddLinuxResourcesUnified(key, value string) {
	unified := map[string]string{key: value}
	for k, v := range e.resources().Unified {
		if k != key {
			unified[k] = v
		}
	}
	e.resources().Unified = unified
}

func (e *editor) SetLinuxResourcesCPUCpus(cpus string)             { e.cpu().Cpus = cpus }
func (e *editor) SetLinuxResourcesCPUMems(mems string)             { e.cpu().Mems = mems }
func (e *editor) SetLinuxResourcesCPUPeriod(period uint64)         { e.cpu().Period = &period }
func (e *editor) SetLinuxResourcesCPUQuota(quota int64)            { e.cpu().Quota = &quota }
func (e *editor) SetLinuxResourcesCPURealtimePeriod(period uint64) { e.cpu().RealtimePeriod = &period }
func (e *editor) SetLinuxResourcesCPURealtimeRuntime(time int64)   { e.cpu().RealtimeRuntime = &time }
func (e *editor) SetLinuxResourcesCPUShares(shares uint64)         { e.cpu().Shares = &shares }
func (e *editor) SetLinuxResourcesMemoryLimit(limit int64)         { e.memory().Limit = &limit }
func (e *editor) SetLinuxResourcesMemorySwap(swap int64)           { e.memory().Swap = &swap }
