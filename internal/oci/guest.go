package oci

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ForGuest returns the spec with which a container of a virtual machine is made, rebuilt from the host's by the table
// guestFields; spec is not changed and shares nothing with the result. Mounts of type bind have sources of the host still:
// the caller shares them with the guest and rewrites them. Block devices are not in it: the caller gives the guest disks
// for them. Numbers of processors and memory nodes are the host's still: see
// GuestResources. What a guest cannot honour is
// NotImplemented (or InvalidArgument where it makes no sense at all), and the message names the field and says why.
func ForGuest(spec *specs.Spec) (*specs.Spec, error) {
	if spec == nil || spec.Process == nil || spec.Root == nil || spec.Linux == nil {
		return nil, fmt.Errorf("spec for a VM pod: process, root and linux must be there: %w", errdefs.ErrInvalidArgument)
	}
	if err := refuseFields(spec); err != nil {
		return nil, fmt.Errorf("spec for a VM pod: %w", err)
	}
	guest, err := rebuild(spec)
	if err != nil {
		return nil, fmt.Errorf("spec for a VM pod: %w", err)
	}
	return clone(guest)
}

// clone cuts all sharing with the input, pointers and slices alike.
func clone(spec *specs.Spec) (*specs.Spec, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	var c specs.Spec
	return &c, json.Unmarshal(data, &c)
}

func rebuild(spec *specs.Spec) (*specs.Spec, error) {
	process, err := guestProcess(spec.Process)
	if err != nil {
		return nil, err
	}
	mounts, err := guestMounts(spec.Mounts)
	if err != nil {
		return nil, err
	}
	linux, err := guestLinux(spec.Linux)
	if err != nil {
		return nil, err
	}
	return &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: rootDir, Readonly: spec.Root.Readonly},
		Mounts:      mounts,
		Annotations: maps.Clone(spec.Annotations),
		Linux:       linux,
	}, nil
}

func guestProcess(p *specs.Process) (*specs.Process, error) {
	// The guest's kernel has no AppArmor. A default profile confines less than the VM does, a chosen one is a promise.
	switch profile := p.ApparmorProfile; {
	case profile == "", profile == "unconfined", isDefaultAppArmor(profile):
	default:
		return nil, fmt.Errorf("AppArmor profile %q: the guest's kernel has no AppArmor; use the profile type RuntimeDefault or Unconfined: %w", profile, errdefs.ErrNotImplemented)
	}
	return &specs.Process{
		Terminal:        p.Terminal,
		ConsoleSize:     p.ConsoleSize,
		User:            specs.User{UID: p.User.UID, GID: p.User.GID, Umask: p.User.Umask, AdditionalGids: p.User.AdditionalGids},
		Args:            p.Args,
		Env:             p.Env,
		Cwd:             p.Cwd,
		Capabilities:    p.Capabilities,
		Rlimits:         p.Rlimits,
		NoNewPrivileges: p.NoNewPrivileges,
		OOMScoreAdj:     p.OOMScoreAdj,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
	}, nil
}

// isDefaultAppArmor knows the names that container managers give their default profile.
func isDefaultAppArmor(profile string) bool {
	return profile == "runtime/default" || profile == "cri-containerd.apparmor.d" || profile == "docker-default" ||
		profile == "crio-default" || strings.HasPrefix(profile, "containers-default-")
}

// guestMounts carries the mounts of kernel file systems and of memory. Files and directories of the host stay in it as
// mounts of type bind: whoever has the guest shares their sources with it and replaces them.
func guestMounts(mounts []specs.Mount) ([]specs.Mount, error) {
	var out []specs.Mount
	for _, m := range mounts {
		dst := path.Clean(m.Destination)
		bind := m.Type == "bind" || m.Type == "none" || m.Type == "" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		switch {
		case !path.IsAbs(m.Destination):
			return nil, fmt.Errorf("mount destination %q is not an absolute path: %w", m.Destination, errdefs.ErrInvalidArgument)
		case dst == "/dev/shm" && (!bind || isManagersShm(m.Source)):
			out = append(out, specs.Mount{Destination: dst, Type: "tmpfs", Source: "shm", Options: shmOptions(m, bind)})
		case bind:
			volume, err := guestVolume(m)
			if err != nil {
				return nil, err
			}
			out = append(out, volume)
		case slices.Contains([]string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}, m.Type):
			typ := m.Type
			if typ == "cgroup2" {
				typ = "cgroup" // runc's word for both
			}
			out = append(out, specs.Mount{Destination: m.Destination, Type: typ, Source: typ, Options: m.Options})
		default:
			return nil, fmt.Errorf("mount of type %s at %s: a VM pod can mount proc, sysfs, tmpfs, devpts, mqueue and cgroup: %w", m.Type, m.Destination, errdefs.ErrNotImplemented)
		}
	}
	return out, nil
}

// guestVolume is the bind mount of a file or a directory of the host.
func guestVolume(m specs.Mount) (specs.Mount, error) {
	switch {
	case !path.IsAbs(m.Source):
		return m, fmt.Errorf("mount at %s: source %q is not an absolute path: %w", m.Destination, m.Source, errdefs.ErrInvalidArgument)
	case slices.Contains(m.Options, "rshared") || slices.Contains(m.Options, "shared"):
		return m, fmt.Errorf("mount at %s: mounts that are made in a VM cannot appear on the host: Bidirectional mount propagation is not possible; "+
			"use None or HostToContainer: %w", m.Destination, errdefs.ErrNotImplemented)
	}
	options := m.Options
	if !slices.Contains(options, "bind") && !slices.Contains(options, "rbind") {
		options = append(slices.Clone(options), "rbind")
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: path.Clean(m.Source), Options: options}, nil
}

// isManagersShm tells the directory that a container manager makes for a pod's /dev/shm from a volume that somebody wants
// there, whatever that is called. Each of them makes it in its own directory of the sandbox or the container, which is
// named by 64 hexadecimal digits; wherever a manager keeps these directories, what is below that is always the same.
// pistisd makes none for a VM.
func isManagersShm(source string) bool {
	id := strings.Repeat("[0-9a-f]", 64)
	elements := strings.Split(path.Clean(source), "/")
	return slices.ContainsFunc([]string{
		"sandboxes/" + id + "/shm",             // containerd
		"containers/" + id + "/mounts/shm",     // Docker
		"*-containers/" + id + "/userdata/shm", // podman and CRI-O: * is the storage driver
	}, func(pattern string) bool {
		n := strings.Count(pattern, "/") + 1
		if len(elements) < n {
			return false
		}
		matches, err := path.Match(pattern, strings.Join(elements[len(elements)-n:], "/"))
		return err == nil && matches
	})
}

// shmOptions are those of a tmpfs; a bind mount's own mean nothing to it.
func shmOptions(m specs.Mount, bind bool) []string {
	if bind {
		return []string{"nosuid", "noexec", "nodev", "mode=1777"}
	}
	return m.Options
}

func guestLinux(l *specs.Linux) (*specs.Linux, error) {
	namespaces, err := guestNamespaces(l.Namespaces)
	if err != nil {
		return nil, err
	}
	devices, err := guestDevices(l.Devices)
	if err != nil {
		return nil, err
	}
	resources, err := GuestResources(l.Resources)
	if err != nil {
		return nil, err
	}
	return &specs.Linux{
		Resources:         resources,
		Namespaces:        namespaces,
		Devices:           devices,
		Seccomp:           l.Seccomp,
		RootfsPropagation: l.RootfsPropagation,
		MaskedPaths:       l.MaskedPaths,
		ReadonlyPaths:     l.ReadonlyPaths,
		Personality:       l.Personality,
	}, nil
}

// guestNamespaces leaves the container's own namespaces. Network, IPC and UTS belong to the pod, which in a VM is the
// whole guest: no namespace is needed for them, and a path of the host's would mean nothing.
func guestNamespaces(namespaces []specs.LinuxNamespace) ([]specs.LinuxNamespace, error) {
	var out []specs.LinuxNamespace
	for _, ns := range namespaces {
		switch ns.Type {
		case specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace:
		case specs.PIDNamespace, specs.MountNamespace, specs.CgroupNamespace:
			if ns.Path != "" {
				return nil, fmt.Errorf("%s namespace %s: a namespace of the host cannot be joined from a VM: %w", ns.Type, ns.Path, errdefs.ErrNotImplemented)
			}
			out = append(out, specs.LinuxNamespace{Type: ns.Type})
		default:
			return nil, fmt.Errorf("%s namespace: VM pods have none: %w", ns.Type, errdefs.ErrNotImplemented)
		}
	}
	return out, nil
}

// guestDevices carries the nodes that every Linux kernel has under the same numbers. Block devices are left out: whoever
// has the guest knows what they are there.
func guestDevices(devices []specs.LinuxDevice) ([]specs.LinuxDevice, error) {
	type number struct{ major, minor int64 }
	everywhere := map[string]number{
		"/dev/null": {1, 3}, "/dev/zero": {1, 5}, "/dev/full": {1, 7}, "/dev/random": {1, 8}, "/dev/urandom": {1, 9},
		"/dev/tty": {5, 0}, "/dev/fuse": {10, 229}, "/dev/net/tun": {10, 200},
	}
	var out []specs.LinuxDevice
	for _, d := range devices {
		if d.Type == "b" {
			continue
		}
		known, ok := everywhere[d.Path]
		if !ok || (d.Type != "c" && d.Type != "u") || known != (number{d.Major, d.Minor}) {
			return nil, fmt.Errorf("device %s (%s %d:%d) is the host's and not in the guest: %w", d.Path, d.Type, d.Major, d.Minor, errdefs.ErrNotImplemented)
		}
		out = append(out, specs.LinuxDevice{Path: d.Path, Type: "c", Major: known.major, Minor: known.minor, FileMode: d.FileMode, UID: d.UID, GID: d.GID})
	}
	return out, nil
}

// GuestResources rebuilds limits for the guest, as ForGuest does; it is for updates too. The numbers of processors and
// memory nodes in it are the host's still: whoever has the VM knows which of its own stand for them.
func GuestResources(r *specs.LinuxResources) (*specs.LinuxResources, error) {
	if r == nil {
		return nil, nil
	}
	if err := refuseFields(r); err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{Devices: r.Devices, Unified: r.Unified}
	for _, huge := range r.HugepageLimits {
		if huge.Limit != 0 {
			return nil, fmt.Errorf("huge pages of %s: a VM pod has none: %w", huge.Pagesize, errdefs.ErrNotImplemented)
		}
	}
	if m := r.Memory; m != nil {
		if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
			return nil, fmt.Errorf("memory: the OOM killer cannot be disabled in a VM pod: %w", errdefs.ErrNotImplemented)
		}
		if m.UseHierarchy != nil && !*m.UseHierarchy {
			return nil, fmt.Errorf("memory: accounting without hierarchy does not exist in cgroup v2: %w", errdefs.ErrNotImplemented)
		}
		out.Memory = &specs.LinuxMemory{Limit: m.Limit, Reservation: m.Reservation, Swap: m.Swap, CheckBeforeUpdate: m.CheckBeforeUpdate}
	}
	if c := r.CPU; c != nil {
		if c.RealtimeRuntime != nil && *c.RealtimeRuntime != 0 || c.RealtimePeriod != nil && *c.RealtimePeriod != 0 {
			return nil, fmt.Errorf("cpu: realtime scheduling limits do not exist in cgroup v2: %w", errdefs.ErrNotImplemented)
		}
		out.CPU = &specs.LinuxCPU{Shares: c.Shares, Quota: c.Quota, Burst: c.Burst, Period: c.Period, Idle: c.Idle, Cpus: c.Cpus, Mems: c.Mems}
	}
	if r.Pids != nil {
		out.Pids = &specs.LinuxPids{Limit: r.Pids.Limit}
	}
	if r.BlockIO != nil {
		out.BlockIO = &specs.LinuxBlockIO{Weight: r.BlockIO.Weight}
	}
	return out, nil
}

// refuseFields walks v and reports the first field that the table refuses and that is set, or that it does not know.
func refuseFields(v any) error {
	return walkRefused(reflect.ValueOf(v), guestFields)
}

func walkRefused(v reflect.Value, table map[string]treatment) error {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return walkRefused(v.Elem(), table)
	case reflect.Slice:
		for i := range v.Len() {
			if err := walkRefused(v.Index(i), table); err != nil {
				return err
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Name() + "." + v.Type().Field(i).Name
			if what := table[field]; what == carry || what == translate {
				if err := walkRefused(v.Field(i), table); err != nil {
					return err
				}
			} else if !isEmpty(v.Field(i)) {
				return fmt.Errorf("%s cannot be honoured in a virtual machine%s: %w", field, advice(field), errdefs.ErrNotImplemented)
			}
		}
	}
	return nil
}

// isEmpty reports whether a field asks for nothing: zero, an empty list, or a pointer to a struct of such.
func isEmpty(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Slice, reflect.Map:
		return v.Len() == 0
	case reflect.Pointer:
		return v.IsNil() || v.Elem().Kind() == reflect.Struct && isEmpty(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if !isEmpty(v.Field(i)) {
				return false
			}
		}
		return true
	default:
		return v.IsZero()
	}
}

// advice says what to do instead, for the fields that people meet.
func advice(field string) string {
	text, ok := map[string]string{
		"Spec.Hooks":           ": hooks run on the host, which the container's processes are not on; remove them",
		"Process.SelinuxLabel": ": the guest's kernel has no SELinux; remove seLinuxOptions from the security context",
		"Linux.MountLabel":     ": the guest's kernel has no SELinux; remove seLinuxOptions from the security context",
		"Linux.Sysctl":         ": set sysctls on the pod",
		"Linux.UIDMappings":    ": VM pods have no user namespaces; the VM isolates the pod",
		"Linux.GIDMappings":    ": VM pods have no user namespaces; the VM isolates the pod",
		"Linux.NetDevices":     ": devices of the host's network cannot move into a VM",
	}[field]
	if !ok {
		return ""
	}
	return text
}
