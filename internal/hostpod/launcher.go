package hostpod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/logfields"
	monitorclient "github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/podfiles"
	"github.com/pistis-run/pistis/internal/rootfs"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/taskshim"
)

// Options of a launcher; all but Units, Shim and Swept are needed.
type Options struct {
	// Runtime and Monitor find the programs, or say why there are none. They are asked at each launch.
	Runtime, Monitor func() (path string, err error)
	// Shim: Runtime is a containerd shim. Nil: it is an OCI runtime, which the monitor calls.
	Shim *taskshim.Options
	// Roots make the containers' root file systems.
	Roots roots
	// Dir has a directory for each sandbox. It is this launcher's alone, and below a run directory.
	Dir string
	// RuntimeRoot is where the OCI runtime keeps its state.
	RuntimeRoot string
	// CgroupParent is for pods that name none: a path, or a slice where there are Units.
	CgroupParent string
	// Units makes the pods' cgroups where that is systemd's business; nil: nobody does.
	Units units
	// Swept is told what was nobody's and whether it could be removed.
	Swept func(kind string, err error)
	Log   *slog.Logger
}

// roots makes root file systems of layers. All methods are safe for concurrent use.
type roots interface {
	// Mount stacks the layers, the lowest first, below a fresh writable one and returns where. On error nothing is left.
	Mount(ctx context.Context, id string, layers []string, opts rootfs.Options) (path string, err error)
	// Remove unmounts a root and removes its writable layer. It is idempotent.
	Remove(ctx context.Context, id string) error
	// Usage of the writable layer.
	Usage(ctx context.Context, id string) (bytes, inodes uint64, err error)
	// Diff writes what the writable layer holds as an archive of an image's layer.
	Diff(ctx context.Context, id string, to io.Writer) error
	// Work makes a directory for temporary files beside the writable layer, which goes with the root at the latest.
	Work(id string) (path string, err error)
	// FileSystem is the one that writable layers are on.
	FileSystem() (task.FileSystem, error)
}

// Launcher runs sandboxes on the host's kernel.
type Launcher struct {
	Options
	monitors monitors
	clamp    *clamp
	cgroups  *cgroup.Reader
	labels   labeller // nil where SELinux is off
}

var _ sandbox.Launcher = (*Launcher)(nil)

// New checks the options and makes the directories.
func New(o Options) (*Launcher, error) {
	if o.Shim != nil {
		return newLauncher(o, shims{*o.Shim})
	}
	return newLauncher(o, monitorProcesses{})
}

func newLauncher(o Options, m monitors) (*Launcher, error) {
	if o.Runtime == nil || o.Monitor == nil || o.Roots == nil || o.Dir == "" || o.RuntimeRoot == "" || o.CgroupParent == "" || o.Log == nil {
		return nil, fmt.Errorf("pods on the host's kernel: an option is missing: %w", errdefs.ErrInvalidArgument)
	}
	for _, dir := range []string{o.Dir, o.RuntimeRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("pods on the host's kernel: %w", err)
		}
	}
	limits, err := newClamp(o.Log)
	if err != nil {
		return nil, fmt.Errorf("pods on the host's kernel: %w", err)
	}
	cgroups, err := cgroup.NewReader()
	if err != nil {
		return nil, fmt.Errorf("pods on the host's kernel: %w", err)
	}
	return &Launcher{Options: o, monitors: m, clamp: limits, cgroups: cgroups, labels: hostLabeller()}, nil
}

// VM is false: the pod shares the host's kernel.
func (*Launcher) VM() bool { return false }

// Validate refuses what contradicts itself.
func (l *Launcher) Validate(cfg sandbox.Config) error {
	if err := cgroup.CheckParent(cfg.CgroupParent, l.Units != nil); err != nil {
		return err
	}
	if cfg.User != nil && (cfg.HostNetwork || cfg.HostPID || cfg.HostIPC) {
		return fmt.Errorf("a pod with a user namespace of its own cannot have the host's network, PID or IPC namespace, in which its users have no rights: "+
			"leave out hostUsers: false, or hostNetwork, hostPID and hostIPC: %w", errdefs.ErrInvalidArgument)
	}
	for name := range cfg.Sysctls {
		if err := sysctlAllowed(name, cfg); err != nil {
			return err
		}
	}
	return nil
}

// pod is what follows from a sandbox's id and configuration.
type pod struct {
	id, dir string
	cfg     sandbox.Config
	netns   string
	podGroup
	// shim: a containerd shim has the containers. The first one is the pod's, for shims whose others live in it.
	shim bool
}

func (l *Launcher) pod(req sandbox.LaunchRequest) pod {
	return pod{id: req.ID, dir: l.dir(req.ID), cfg: req.Config, netns: req.NetNS, podGroup: l.group(req), shim: l.Shim != nil}
}

// hasInit tells whether the pod has a process of its own.
func (p pod) hasInit() bool { return p.cfg.SharedPID || p.shim }

func (l *Launcher) dir(id string) string { return filepath.Join(l.Dir, id) }

// The files and mounts of a pod's directory.
func (p pod) file(name string) string { return filepath.Join(p.dir, name) }
func (p pod) monitor() string         { return p.file("monitor") }
func (p pod) shm() string             { return p.file("shm") }
func (p pod) ipc() string             { return p.file("ipc") }
func (p pod) uts() string             { return p.file("uts") }
func (p pod) user() string            { return p.file("user") }

// sharedPID is the PID namespace of the pod, targetPID the one of another container that a container joins.
func (p pod) sharedPID() string          { return p.file("pid") }
func (p pod) targetPID(id string) string { return p.file("pid-" + id) }

// Launch makes what the pod's containers share and starts their monitor.
func (l *Launcher) Launch(ctx context.Context, req sandbox.LaunchRequest) (_ sandbox.Instance, err error) {
	runtime, err := l.Runtime()
	if err != nil {
		return nil, err
	}
	program, err := l.Monitor()
	if err != nil {
		return nil, err
	}
	p := l.pod(req)
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	if err := os.Mkdir(p.dir, 0o711); err != nil {
		return nil, fmt.Errorf("pod directory: %w", err)
	}
	var m monitor
	undo.Add("clean up pod", func(ctx context.Context) error {
		err := l.Cleanup(ctx, req)
		if m != nil {
			err = errors.Join(err, m.Close()) // after its end, of which it takes notice
		}
		return err
	})
	if err := p.writeFile(parentFile, []byte(p.cfg.CgroupParent)); err != nil {
		return nil, err
	}
	if err := l.labelPod(p); err != nil {
		return nil, err
	}
	_, shared := span.Start(ctx, "namespaces")
	err = p.share()
	shared(err)
	if err != nil {
		return nil, err
	}
	launching, launched := span.Start(ctx, "monitor process")
	m, err = l.monitors.launch(launching, monitorclient.Config{
		Binary: program, Dir: p.monitor(), Runtime: runtime, RuntimeArgs: []string{"--root", l.RuntimeRoot}, Cgroup: p.monitorGroup(), Adopt: l.adopt(ctx, p),
	})
	launched(err)
	if err != nil {
		return nil, err
	}
	network, err := req.Connected(ctx)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(p.configure(network), l.labelShared(p)); err != nil {
		return nil, err
	}
	i := l.instance(p, m)
	if p.hasInit() {
		if err := i.tasks.startInit(ctx, program); err != nil {
			return nil, err
		}
	}
	undo.Release()
	return i, nil
}

// configure makes what depends on the pod's network: sysctls, which may be of its interfaces, and the files that the
// runtime gives to every container of the pod.
func (p pod) configure(network sandbox.Connection) error {
	if err := p.setSysctls(); err != nil {
		return err
	}
	resolv, err := podfiles.ResolvConf(p.cfg.DNS, network.DNS)
	if err != nil {
		return err
	}
	hostname := cmp.Or(p.cfg.Hostname, hostHostname())
	hosts := podfiles.Hosts(p.cfg.Hostname, network.IPs)
	if p.cfg.HostNetwork {
		if hosts, err = os.ReadFile("/etc/hosts"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("pod files: %w", err)
		}
	}
	return errors.Join(p.writeFile("resolv.conf", resolv), p.writeFile("hosts", hosts), p.writeFile("hostname", []byte(hostname+"\n")),
		p.writeFile(addressesFile, []byte(strings.Join(network.IPs, "\n"))))
}

func (p pod) writeFile(name string, content []byte) error {
	if err := os.WriteFile(p.file(name), content, 0o644); err != nil {
		return fmt.Errorf("pod files: %w", err)
	}
	return nil
}

// parentFile keeps the cgroup that the client named, for who finds the directory without a record.
const parentFile = "cgroup-parent"

// readParent is empty where the directory was made a moment before its maker died.
func readParent(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, parentFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return string(data), nil
}

func hostHostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

// Reconnect attaches to the monitor of a sandbox.
func (l *Launcher) Reconnect(ctx context.Context, req sandbox.LaunchRequest) (sandbox.Instance, error) {
	p := l.pod(req)
	if err := l.reserveLabels(p); err != nil {
		return nil, err
	}
	m, err := l.monitors.connect(ctx, p.monitor())
	if err != nil {
		return nil, err
	}
	return l.instance(p, m), nil
}

// Cleanup kills what is left of the pod and removes everything that was made for it.
func (l *Launcher) Cleanup(ctx context.Context, req sandbox.LaunchRequest) error {
	return l.remove(ctx, l.pod(req))
}

func (l *Launcher) remove(ctx context.Context, p pod) error {
	// The monitor first, with its containers: nothing starts any more.
	if err := l.monitors.cleanup(ctx, p.monitor()); err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	ids, err := p.containers()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		errs = append(errs, l.removeContainer(ctx, p, id))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := l.removeOwn(ctx, p); err != nil {
		return err
	}
	own, err := p.labels()
	if err != nil {
		return err
	}
	if err := p.unshare(); err != nil {
		return err
	}
	l.releaseLabels(own) // once: they may be another pod's when this is tried again
	return nil
}

// removeContainer removes what the monitor and the runtime have left of a container, and its root.
func (l *Launcher) removeContainer(ctx context.Context, p pod, id string) error {
	group, err := cgroup.OfSpec(p.cgroupsPath(id))
	if err == nil {
		err = removeGroup(ctx, group)
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	if err := l.Roots.Remove(ctx, id); err != nil {
		return fmt.Errorf("container %s: %w", id, err)
	}
	return p.forget(id)
}

// Sweep removes pods that nobody knows.
func (l *Launcher) Sweep(ctx context.Context, keep map[string]bool) error {
	entries, err := os.ReadDir(l.Dir)
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	var errs []error
	for _, entry := range entries {
		id := entry.Name()
		if keep[id] || strings.HasPrefix(id, ".") {
			continue
		}
		l.Log.InfoContext(ctx, "removing a pod that belongs to no sandbox", logfields.Sandbox, id)
		parent, err := readParent(l.dir(id))
		if err == nil {
			err = l.remove(ctx, l.pod(sandbox.LaunchRequest{ID: id, Config: sandbox.Config{CgroupParent: parent}}))
		}
		if l.Swept != nil {
			l.Swept("pod", err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
