package hostpod

import (
	"maps"
	"path"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/task"
)

// specVersion is the newest that every runtime in use understands (crun 1.8 refuses 1.2), and older than nothing that the
// specs here use.
const specVersion = "1.1.0"

// finish turns a container's spec into one for this pod: its namespaces, files and cgroup, the container's root and
// user.
func (p pod) finish(spec *specs.Spec, req task.CreateRequest, root string, user task.User) {
	spec.Version = specVersion
	spec.Root.Path = root
	spec.Process.User = specs.User{UID: user.UID, GID: user.GID, AdditionalGids: user.AdditionalGIDs}
	spec.Linux.CgroupsPath = p.cgroupsPath(req.ID)
	p.setNamespaces(spec, req.ID, req.PID)
	p.addFiles(spec)
	p.forShim(spec, "container")
}

// logDirectory is, to shims, where the pod's logs are.
const logDirectory = "io.kubernetes.cri.sandbox-log-directory"

// forShim says to a shim which pod the container belongs to, by the annotations of containerd, and what not every runtime finds
// in the pod's namespaces.
func (p pod) forShim(spec *specs.Spec, kind string) {
	if !p.shim {
		return
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	maps.Copy(spec.Annotations, map[string]string{
		oci.AnnotationContainerType: kind, oci.AnnotationSandboxID: p.initID(), oci.AnnotationSandboxName: p.cfg.Name,
		oci.AnnotationSandboxNamespace: p.cfg.Namespace, oci.AnnotationSandboxUID: p.cfg.UID, logDirectory: p.cfg.LogDir,
	})
	if !p.cfg.HostNetwork {
		spec.Hostname = p.cfg.Hostname
	}
}

// setNamespaces makes the container join the pod's namespaces, or the host's.
func (p pod) setNamespaces(spec *specs.Spec, id string, pid task.PIDNamespace) {
	join := map[specs.LinuxNamespaceType]string{}
	leave := map[specs.LinuxNamespaceType]bool{}
	if p.cfg.HostNetwork {
		leave[specs.NetworkNamespace], leave[specs.UTSNamespace] = true, true
	} else {
		join[specs.NetworkNamespace], join[specs.UTSNamespace] = p.netns, p.uts()
	}
	if p.cfg.HostIPC {
		leave[specs.IPCNamespace] = true
	} else {
		join[specs.IPCNamespace] = p.ipc()
	}
	switch {
	case pid.Own:
	case pid.Container != "":
		join[specs.PIDNamespace] = p.targetPID(id)
	case p.cfg.HostPID:
		leave[specs.PIDNamespace] = true
	case p.cfg.SharedPID:
		join[specs.PIDNamespace] = p.sharedPID()
	}
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return leave[ns.Type] })
	if user := p.cfg.User; user != nil {
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = user.UIDs, user.GIDs
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: p.user()})
	}
	for i, ns := range spec.Linux.Namespaces {
		if at, ok := join[ns.Type]; ok {
			spec.Linux.Namespaces[i].Path = at
		}
	}
}

// addFiles mounts the pod's files and shared memory, unless the container has mounts of its own there.
func (p pod) addFiles(spec *specs.Spec) {
	access := "rw"
	if spec.Root.Readonly {
		access = "ro"
	}
	shm := p.shm()
	if p.cfg.HostIPC {
		shm = "/dev/shm"
	}
	own := map[string]bool{}
	for _, m := range spec.Mounts {
		if m.Type == "bind" || slices.Contains(m.Options, "rbind") {
			own[path.Clean(m.Destination)] = true
		}
	}
	for i, m := range spec.Mounts {
		if m.Destination == "/dev/shm" && !own["/dev/shm"] {
			spec.Mounts[i] = specs.Mount{Destination: m.Destination, Type: "bind", Source: shm, Options: []string{"rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"}}
		}
	}
	for name, source := range map[string]string{
		"/etc/hostname": p.file("hostname"), "/etc/hosts": p.file("hosts"), "/etc/resolv.conf": p.file("resolv.conf"),
	} {
		if !own[name] {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: name, Type: "bind", Source: source, Options: []string{"rbind", "rprivate", access}})
		}
	}
}

// containers are the ids of the containers that were made and not removed.
func (p pod) containers() ([]string, error) {
	return list(p.file("containers"))
}

// remember notes a container before anything of it is made, so that Cleanup finds it; forget is the end.
func (p pod) remember(id string) error { return note(filepath.Join(p.file("containers"), id)) }

// forget also lets go of the PID namespace that the container joined.
func (p pod) forget(id string) error {
	if err := unpin(p.targetPID(id)); err != nil {
		return err
	}
	return unnote(filepath.Join(p.file("containers"), id))
}
