package agent

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/agent/cgroup"
)

// maxSpec bounds a spec or a process in JSON.
const maxSpec = 4 << 20

// placement is what the guest adds to a spec.
type placement struct {
	id, root string
	// pidNamespace is the pod's, as a path; empty gives the container its own.
	pidNamespace string
	// mounts are the pod's files, used unless the spec mounts something else there.
	mounts []specs.Mount
}

func parseSpec(text []byte) (*specs.Spec, error) {
	if len(text) > maxSpec {
		return nil, invalid("spec: %d bytes, at most %d are possible", len(text), maxSpec)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(text, spec); err != nil {
		return nil, invalid("spec: %w", err)
	}
	switch {
	case spec.Process == nil || len(spec.Process.Args) == 0:
		return nil, invalid("spec: no process to run")
	case spec.Hooks != nil && hasHooks(spec.Hooks):
		return nil, unsupported("spec: hooks run programs of the host, which a guest does not have: remove them")
	case spec.Linux == nil:
		spec.Linux = &specs.Linux{}
	}
	if len(spec.Linux.UIDMappings) > 0 || len(spec.Linux.GIDMappings) > 0 {
		return nil, unsupported("spec: user namespaces inside a microVM: remove the id mappings, the machine itself is the boundary")
	}
	return spec, nil
}

func hasHooks(h *specs.Hooks) bool {
	//nolint:staticcheck // Prestart is deprecated and must be refused like the others.
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0
}

// adapt makes the host's spec one of this guest. It returns the sysctls, which belong to the namespaces that all
// containers share and are therefore the agent's to set.
func adapt(spec *specs.Spec, p placement) (sysctls map[string]string, err error) {
	readonly := spec.Root != nil && spec.Root.Readonly
	spec.Root = &specs.Root{Path: p.root, Readonly: readonly}
	// The pod's names were set once: containers share the guest's UTS namespace.
	spec.Hostname, spec.Domainname = "", ""
	spec.Linux.CgroupsPath = cgroup.Path(p.id)
	if spec.Linux.Namespaces, err = namespaces(spec.Linux.Namespaces, p.pidNamespace); err != nil {
		return nil, err
	}
	spec.Mounts = addMounts(spec.Mounts, p.mounts, readonly)
	if allDevices(spec.Linux.Resources) {
		if err := addDevices(spec.Linux, "/dev"); err != nil {
			return nil, err
		}
	}
	sysctls = spec.Linux.Sysctl
	spec.Linux.Sysctl = nil
	return sysctls, nil
}

// namespaces: network, IPC and UTS are the guest's own; mount, cgroup and PID are the container's, unless the pod
// shares its PID namespace.
func namespaces(asked []specs.LinuxNamespace, pid string) ([]specs.LinuxNamespace, error) {
	out := []specs.LinuxNamespace{
		{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.PIDNamespace, Path: pid},
	}
	for _, n := range asked {
		if n.Path != "" {
			return nil, invalid("spec: %s namespace: a path of the host means nothing in a guest", n.Type)
		}
		switch n.Type {
		case specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace,
			specs.MountNamespace, specs.CgroupNamespace, specs.PIDNamespace:
		case specs.TimeNamespace:
			out = append(out, n)
		default:
			return nil, unsupported("spec: %s namespace inside a microVM", n.Type)
		}
	}
	return out, nil
}

// addMounts puts the pod's mounts behind those of the spec, where they win over a file system that the spec
// mounts above them, except where the spec mounts something of its own at the same place.
func addMounts(mounts, pod []specs.Mount, readonly bool) []specs.Mount {
	for _, m := range pod {
		i := slices.IndexFunc(mounts, func(have specs.Mount) bool {
			return filepath.Clean(have.Destination) == m.Destination
		})
		if i >= 0 && (m.Destination != "/dev/shm" || mounts[i].Type != "tmpfs") {
			continue
		}
		m.Options = slices.Clone(m.Options)
		if readonly && m.Destination != "/dev/shm" {
			m.Options = append(m.Options, "ro")
		}
		if i >= 0 {
			mounts[i] = m // the usual private /dev/shm gives way to the pod's
			continue
		}
		mounts = append(mounts, m)
	}
	return mounts
}

// allDevices tells a container that may use every device: its last word on devices allows all of them.
func allDevices(r *specs.LinuxResources) bool {
	if r == nil || len(r.Devices) == 0 {
		return false
	}
	last := r.Devices[len(r.Devices)-1]
	return last.Allow && (last.Type == "" || last.Type == "a") && last.Major == nil && last.Minor == nil && last.Access == "rwm"
}

// addDevices gives a container the guest's device nodes.
func addDevices(linux *specs.Linux, dev string) error {
	return filepath.WalkDir(dev, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, dev+"/")
		if d.IsDir() {
			if slices.Contains([]string{"pts", "shm", "mqueue"}, rel) {
				return fs.SkipDir // the container has its own
			}
			return nil
		}
		if d.Type()&os.ModeDevice == 0 || slices.Contains([]string{"console", "tty", "ptmx"}, rel) {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		target := filepath.Join("/dev", rel)
		if slices.ContainsFunc(linux.Devices, func(have specs.LinuxDevice) bool { return have.Path == target }) {
			return nil
		}
		kind := "b"
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			kind = "c"
		}
		mode := fs.FileMode(st.Mode & 0o777)
		linux.Devices = append(linux.Devices, specs.LinuxDevice{
			Path: target, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		})
		return nil
	})
}
