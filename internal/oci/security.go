package oci

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func defaultCaps() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

// DefaultMaskedPaths and DefaultReadonlyPaths are what containers do not see, or not write, of the kernel.
func DefaultMaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

// DefaultReadonlyPaths: see DefaultMaskedPaths.
func DefaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

func knownCaps() []string {
	var all []string
	for _, c := range capability.ListKnown() {
		all = append(all, "CAP_"+strings.ToUpper(c.String()))
	}
	return all
}

// capabilities of a container: of all or the default set, without what is dropped, with what is added. As in
// containerd "ALL" is looked at first, so that drop ALL and add X leaves X. The inheritable set is only what the
// ambient set needs.
func capabilities(s Security) (*specs.LinuxCapabilities, error) {
	known := knownCaps()
	add, addAll, err := capNames(s.AddCaps, known)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames(s.DropCaps, known)
	if err != nil {
		return nil, err
	}
	ambient, ambientAll, err := capNames(s.AmbientCaps, known)
	if err != nil {
		return nil, err
	}
	if ambientAll {
		return nil, fmt.Errorf("ambient capabilities must be named, ALL is not possible: %w", errdefs.ErrInvalidArgument)
	}
	set := defaultCaps()
	switch {
	case s.Privileged, addAll:
		set = known
	case dropAll:
		set = nil
	}
	if addAll && dropAll {
		set = nil
	}
	if !s.Privileged {
		set = append(slices.Clone(set), add...)
		set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	}
	set = append(slices.Clone(set), ambient...)
	slices.Sort(set)
	set = slices.Compact(set)
	return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient}, nil
}

// capNames brings names into the kernel's form and reports whether ALL was among them.
func capNames(names, known []string) (caps []string, all bool, err error) {
	for _, name := range names {
		upper := strings.ToUpper(name)
		if upper == "ALL" || upper == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(upper, "CAP_") {
			upper = "CAP_" + upper
		}
		if !slices.Contains(known, upper) {
			return nil, false, fmt.Errorf("capability %q is not known: %w", name, errdefs.ErrInvalidArgument)
		}
		if !slices.Contains(caps, upper) {
			caps = append(caps, upper)
		}
	}
	return caps, all, nil
}

// confine sets what restricts the process's view: paths and system calls. A privileged container has neither.
func confine(spec *specs.Spec, s Security) {
	if s.Privileged {
		return
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = s.MaskedPaths, s.ReadonlyPaths
	if s.MaskedPaths == nil {
		spec.Linux.MaskedPaths = DefaultMaskedPaths()
	}
	if s.ReadonlyPaths == nil {
		spec.Linux.ReadonlyPaths = DefaultReadonlyPaths()
	}
	if s.Seccomp != nil {
		spec.Linux.Seccomp = s.Seccomp(spec)
	}
}
