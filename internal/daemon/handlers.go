package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/cri"
	"github.com/pistis-run/pistis/internal/guestimage"
	"github.com/pistis-run/pistis/internal/hostpod"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rootfs"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/snapshot"
	"github.com/pistis-run/pistis/internal/taskshim"
	"github.com/pistis-run/pistis/internal/telemetry"
	"github.com/pistis-run/pistis/internal/vmpod"
)

// handlers are the runtime handlers of the configuration with what runs their pods.
type handlers struct {
	cfg      config.Config
	guest    guestFiles
	accel    *accelerator
	machines *machines
	groups   groups
	// network says whether pods of a handler could be connected now.
	network func(handler string) error
	// userNamespaces tells, from a trial, whether this host can map the owners of pods' files.
	userNamespaces func() bool
	launchers      map[string]sandbox.Launcher
	counts         *telemetry.Metrics
	log            *slog.Logger
}

// guestFiles finds the guest's files: those of the configuration, else those that were built. They are
// looked for each time, so that a guest that is built while the daemon runs is taken.
type guestFiles struct {
	vmpod.Guest
	built string
}

func (g guestFiles) find() (vmpod.Guest, error) {
	if g.Kernel == "" {
		guest, err := guestimage.Load(g.built)
		if errdefs.IsNotFound(err) {
			return vmpod.Guest{}, fmt.Errorf("no guest kernel in %s: run `pistis guest build`, or set vm.kernel and vm.initrd in pistisd's configuration: %w",
				g.built, errdefs.ErrFailedPrecondition)
		}
		return vmpod.Guest{Kernel: guest.Kernel, Initrd: guest.Initrd, Modules: guest.ModulesDisk}, err
	}
	for key, path := range map[string]string{"vm.kernel": g.Kernel, "vm.initrd": g.Initrd, "vm.modules": g.Modules} {
		if path == "" {
			continue // modules: the guest's are built in
		}
		if _, err := os.Stat(path); err != nil {
			return vmpod.Guest{}, fmt.Errorf("%s: %w: %w", key, err, errdefs.ErrFailedPrecondition)
		}
	}
	return g.Guest, nil
}

// ready says whether pods of a handler can be run now.
func (h *handlers) ready(name string, handler config.Handler) error {
	if handler.Type != config.HandlerVM {
		if _, err := h.cfg.FindMonitor(); err != nil {
			return err
		}
		path, err := findHost(name, handler)
		if err != nil {
			return err
		}
		return hostpod.CheckRuntime(path)
	}
	if _, err := h.guest.find(); err != nil {
		return err
	}
	if _, err := h.cfg.VM.FindShim(handler); err != nil {
		return err
	}
	if err := h.machines.ready(handler.Hypervisor); err != nil {
		return err
	}
	return snapshot.Ready()
}

// connected says whether pods of a handler with a network of its own could have it now. That of all others is the node's.
func (h *handlers) connected(name string, handler config.Handler) error {
	if handler.CNIConfDir == "" {
		return nil
	}
	return h.network(name)
}

// forCRI are the handlers as the CRI server wants to know them.
func (h *handlers) forCRI() cri.Handlers {
	out := cri.Handlers{Default: h.cfg.DefaultHandler, Untrusted: h.cfg.UntrustedHandler, ByName: map[string]cri.Handler{}}
	for name, handler := range h.cfg.Handlers {
		offered := cri.Handler{
			VM:    handler.Type == config.HandlerVM,
			Ready: func() error { return errors.Join(h.ready(name, handler), h.connected(name, handler)) },
		}
		if !offered.VM {
			offered.UserNamespaces = h.userNamespaces
			offered.RecursiveReadOnly = hostpod.CheckRecursiveReadOnly
		}
		if handler.Type == config.HandlerShim {
			shim := shimAbilities{name: name, handler: handler, log: h.log}
			offered.UserNamespaces = nil
			if handler.RuncShim() { // others do not join the pod's user namespace, whatever they can beside that
				offered.UserNamespaces = func() bool { return shim.get().IDMaps && h.userNamespaces() }
			}
			offered.RecursiveReadOnly = shim.recursiveReadOnly
		}
		out.ByName[name] = offered
	}
	return out
}

// openHandlers makes a launcher for each handler. One whose programs or guest are missing is made too: it is not ready,
// and becomes so when they are installed.
func openHandlers(cfg config.Config, p paths, disks *snapshot.Disks, roots *rootfs.Watched, counts *telemetry.Metrics, log *slog.Logger) (*handlers, error) {
	h := &handlers{
		cfg: cfg, counts: counts, log: log, launchers: map[string]sandbox.Launcher{},
		guest: guestFiles{Guest: vmpod.Guest{Kernel: cfg.VM.Kernel, Initrd: cfg.VM.Initrd, Modules: cfg.VM.Modules}, built: p.guest()},
	}
	kernels := &vmlinuxes{dir: p.vmlinux()}
	h.accel = newAccelerator(cfg.VM, h.guest, kernels, cfg.Root, log)
	h.machines = &machines{vm: cfg.VM, guest: h.guest, accel: h.accel, kernels: kernels, log: log}
	h.userNamespaces = sync.OnceValue(func() bool {
		err := tryUserNamespace(p, roots)
		if err != nil {
			log.Info("pods have no user namespaces on this host", logfields.Error, err)
		}
		return err == nil
	})
	first, last, err := cfg.VM.UIDRange()
	if err != nil {
		return nil, fmt.Errorf("daemon: vm.uids: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	uids := vmpod.NewUIDs(first, last)
	if h.groups, err = newGroups(cfg); err != nil {
		return nil, err
	}
	pods, err := podsOf(p)
	if err != nil {
		return nil, fmt.Errorf("daemon: %w", err)
	}
	if err := h.groups.settle(p.state, pods); err != nil {
		return nil, err
	}
	for name, handler := range cfg.Handlers {
		if handler.Type != config.HandlerVM {
			h.launchers[name], err = h.openHost(name, handler, p, roots, log)
		} else {
			h.launchers[name], err = h.openVM(handler, p, disks, uids, log)
		}
		if err != nil {
			return nil, fmt.Errorf("daemon: handler %s: %w", name, err)
		}
	}
	return h, nil
}

func (h *handlers) openVM(handler config.Handler, p paths, disks *snapshot.Disks, uids *vmpod.UIDs, log *slog.Logger) (sandbox.Launcher, error) {
	shim, err := h.cfg.VM.FindShim(handler)
	if err != nil {
		shim = config.ShimName
	}
	return vmpod.New(vmpod.Options{
		Config: h.cfg.VM, Firecracker: h.cfg.Firecracker, Shim: shim, Host: func(ctx context.Context) (vmpod.Machine, error) { return h.machines.choose(ctx, handler.Hypervisor) },
		NewScratch: disks.NewScratch, UIDs: uids, Dir: p.pods(), ScratchDir: p.scratch(), ConsoleDir: p.consoles(), CgroupParent: h.groups.parent, Units: h.groups.units,
		Booted: h.counts.Boot, Swept: h.counts.Leak, Log: log,
	})
}

// findHost finds what runs the containers of a handler on the host's kernel.
func findHost(name string, handler config.Handler) (string, error) {
	if handler.Type == config.HandlerShim {
		return handler.FindContainerdShim(name)
	}
	return handler.FindRuntime(name)
}

func (h *handlers) openHost(name string, handler config.Handler, p paths, roots *rootfs.Watched, log *slog.Logger) (sandbox.Launcher, error) {
	find := func() (string, error) { return findHost(name, handler) }
	var shim *taskshim.Options
	if handler.Type == config.HandlerShim {
		options, err := handler.ShimOptions(filepath.Join(p.runtimes(), name), h.groups.systemd())
		if err != nil {
			return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		shim = &taskshim.Options{Binary: find, Options: options, Events: p.shimEvents(), SocketDir: p.shimSockets(), Log: log}
	}
	return hostpod.New(hostpod.Options{
		Runtime: find, Shim: shim, Monitor: h.cfg.FindMonitor,
		Roots: roots, Dir: filepath.Join(p.hostPods(), name), RuntimeRoot: filepath.Join(p.runtimes(), name),
		CgroupParent: h.groups.parent, Units: h.groups.units, Swept: h.counts.Leak, Log: log,
	})
}

// tryUserNamespace makes what a pod with a user namespace needs and removes it again.
func tryUserNamespace(p paths, roots *rootfs.Watched) (err error) {
	const id = "trial"
	ctx, cancel := cleanup.Detach(context.Background())
	defer cancel()
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1 << 16, Size: 1 << 16}}
	ns, err := createOwned(p.netns(), id, sandbox.UserNamespace{UIDs: ids, GIDs: ids})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, netns.Remove(ns)) }()
	layer := filepath.Join(p.root, id) // found again by the next trial, should this one be cut short
	if err := os.MkdirAll(layer, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(layer)) }()
	if _, err := roots.Mount(ctx, id, []string{layer}, rootfs.Options{UserNS: ns + netns.UserSuffix}); err != nil {
		return err
	}
	return roots.Remove(ctx, id)
}

// warmUp finds out how guests run before the first pod has to wait for it. It ends with ctx.
func (h *handlers) warmUp(ctx context.Context, log *slog.Logger) {
	if _, err := h.accel.get(ctx); err != nil && ctx.Err() == nil {
		log.Warn("how guests run is not decided yet", logfields.Error, err)
	}
}
