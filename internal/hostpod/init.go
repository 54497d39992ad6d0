package hostpod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	monitorclient "github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/task"
)

// initID is the container, as the monitor and the runtime know it, around the first process of the pod. A shim finds it by
// the id of the sandbox.
func (p pod) initID() string {
	if p.shim {
		return p.id
	}
	return p.id + "-init"
}

// startInit starts the first process of the pod, and of its PID namespace where it has one: the monitor's own program, which
// then does nothing but reap. It has a container around it, with nothing in its root and no capability, since the pod's other
// processes can look into it.
func (t *tasks) startInit(ctx context.Context, program string) error {
	id := t.p.initID()
	bundle := t.p.file(id)
	root := filepath.Join(bundle, "rootfs")
	if err := makeInitRoot(root); err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	if err := t.p.remember(id); err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	spec := initSpec(program, root)
	spec.Linux.CgroupsPath = t.p.cgroupsPath(id)
	t.p.forShim(spec, "sandbox")
	t.p.setNamespaces(spec, id, task.PIDNamespace{Own: true})
	if err := t.l.clamp.apply(spec); err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	if err := writeSpec(bundle, spec); err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	if err := t.monitor.Create(ctx, monitorclient.CreateRequest{ID: id, Bundle: bundle, CgroupsPath: spec.Linux.CgroupsPath}); err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	pid, err := t.monitor.Start(ctx, task.ID{Container: id})
	if err != nil {
		return fmt.Errorf("first process: %w", err)
	}
	if t.p.shim {
		if err := t.p.onHost(pid); err != nil {
			return err
		}
	}
	if !t.p.cfg.SharedPID {
		return nil
	}
	return t.pinPIDOf(ctx, id, t.p.sharedPID())
}

// onHost refuses a shim whose containers are not in the namespaces of the host that the pod is to have: one that makes a machine
// or a kernel of its own around them.
func (p pod) onHost(pid uint32) error {
	wanted := map[string]string{} // by a thread, as the first one of the daemon may have been in a pod's and stayed there
	if p.cfg.HostNetwork {
		wanted["net"] = "/proc/thread-self/ns/net"
	}
	switch {
	case p.cfg.HostIPC:
		wanted["ipc"] = "/proc/thread-self/ns/ipc"
	case p.cfg.HostPID: // the first process has processes of its own; where it is not in the pod's namespaces, no container is in the host's
		wanted["ipc"] = p.ipc()
	}
	for kind, path := range wanted {
		theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		if err != nil {
			return fmt.Errorf("first process: %w", err)
		}
		want, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("first process: %w", err)
		}
		if !os.SameFile(theirs, want) {
			return fmt.Errorf("the shim keeps its containers apart from the host's namespaces: leave out hostNetwork, hostIPC and hostPID, or use another RuntimeClass: %w",
				errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// initPath is where the program is in its root.
const initPath = "/init"

// makeInitRoot makes a root with what is mounted over: root in a user namespace may not make it here.
func makeInitRoot(root string) error {
	for _, dir := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(root, initPath), nil, 0o755)
}

func initSpec(program, root string) *specs.Spec {
	score := -998 // the pod ends with it
	return &specs.Spec{
		Version: specVersion,
		Process: &specs.Process{
			Args: []string{initPath, "init"}, Cwd: "/", NoNewPrivileges: true, OOMScoreAdj: &score, Capabilities: &specs.LinuxCapabilities{},
		},
		Root: &specs.Root{Path: root, Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{Destination: initPath, Type: "bind", Source: program, Options: []string{"bind", "ro", "nosuid", "nodev"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths:   oci.DefaultMaskedPaths(),
			ReadonlyPaths: oci.DefaultReadonlyPaths(),
		},
	}
}
