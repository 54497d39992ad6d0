package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/cri"
	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/hostpod"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/image/registry"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network"
	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/nri"
	"github.com/pistis-run/pistis/internal/rootfs"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/snapshot"
	"github.com/pistis-run/pistis/internal/taskshim"
	"github.com/pistis-run/pistis/internal/telemetry"
)

// paths are where the engine's parts keep their things. Below root is what survives a reboot, below state what
// does not. Each part owns its directory.
type paths struct{ root, state string }

func (p paths) images() string         { return filepath.Join(p.root, "images") }
func (p paths) layers() string         { return filepath.Join(p.root, "layers") }
func (p paths) sandboxRecords() string { return filepath.Join(p.root, "sandboxes") }
func (p paths) containerRecords() string {
	return filepath.Join(p.root, "containers")
}
func (p paths) network() string  { return filepath.Join(p.root, "network") }
func (p paths) scratch() string  { return filepath.Join(p.root, "scratch") }
func (p paths) consoles() string { return filepath.Join(p.root, "consoles") }
func (p paths) guest() string    { return filepath.Join(p.root, "guest") }
func (p paths) vmlinux() string  { return filepath.Join(p.root, "vmlinux") }
func (p paths) dirs() string     { return filepath.Join(p.root, "dirs") }
func (p paths) roots() string    { return filepath.Join(p.root, "roots") }
func (p paths) volumes() string  { return filepath.Join(p.root, "volumes") }
func (p paths) netns() string    { return filepath.Join(p.state, "netns") }
func (p paths) pods() string     { return filepath.Join(p.state, "pods") }
func (p paths) bundles() string  { return filepath.Join(p.state, "bundles") }

// Pods on the host's kernel, and what OCI runtimes keep of them; a directory for each handler below both.
func (p paths) hostPods() string { return filepath.Join(p.state, "host") }
func (p paths) runtimes() string { return filepath.Join(p.state, "runtimes") }

// Sockets of containerd shims: theirs, and that of what they tell.
func (p paths) shimSockets() string { return filepath.Join(p.state, "s") }
func (p paths) shimEvents() string  { return filepath.Join(p.shimSockets(), "events.sock") }

// ofState are the directories below state that hold files alone.
func (p paths) ofState() []string {
	return []string{p.bundles(), p.pods(), p.runtimes(), p.shimSockets()}
}

// pins are the directories below state that hold pins of namespaces: mounts that reach their copies.
func (p paths) pins() []string { return []string{p.netns(), p.hostPods()} }

// engine is what does the work below the CRI.
type engine struct {
	paths      paths
	images     *image.Service
	disks      *snapshot.Disks
	dirs       *snapshot.Layers
	roots      *rootfs.Watched
	network    *network.Node
	handlers   *handlers
	events     *event.Broker
	sandboxes  *sandbox.Manager
	containers *container.Manager
	plugins    *nri.Plugins // nil: none
}

// openEngine opens the parts, from the bottom up, and puts their ends on down. Nothing has been recovered yet.
func openEngine(ctx context.Context, cfg config.Config, counts *telemetry.Metrics, log *slog.Logger, down *cleanup.Stack) (*engine, error) {
	e := &engine{paths: paths{root: cfg.Root, state: cfg.State}, events: event.NewBroker()}
	var err error
	if e.images, err = openImages(ctx, cfg, e.paths, counts, log); err != nil {
		return nil, err
	}
	down.Add("close images", closing(e.images.Close))
	if e.disks, err = snapshot.OpenDisks(e.paths.layers(), e.images); err != nil {
		return nil, err
	}
	down.Add("close disks", closing(e.disks.Close))
	if e.dirs, err = snapshot.OpenDirectories(e.paths.dirs(), e.images); err != nil {
		return nil, err
	}
	down.Add("close directories", closing(e.dirs.Close))
	roots, err := rootfs.Open(e.paths.roots())
	if err != nil {
		return nil, err
	}
	e.roots = rootfs.Watch(roots)
	down.Add("close roots", closing(e.roots.Close))
	volumes, err := rootfs.Open(e.paths.volumes())
	if err != nil {
		return nil, err
	}
	// The first form is made when an image is pulled, the other one when a container needs it.
	if cfg.Handlers[cfg.DefaultHandler].Type == config.HandlerVM {
		e.images.SetForms(e.disks, e.dirs)
	} else {
		e.images.SetForms(e.dirs, e.disks)
	}
	if e.network, err = openNetwork(cfg.Network, cfg.Handlers, e.paths, log); err != nil {
		return nil, err
	}
	down.Add("close network", closing(e.network.Close))
	if e.handlers, err = openHandlers(cfg, e.paths, e.disks, e.roots, counts, log); err != nil {
		return nil, err
	}
	e.handlers.network = e.network.StatusOf
	if cfg.HasShims() {
		events, err := taskshim.Serve(e.paths.shimEvents())
		if err != nil {
			return nil, fmt.Errorf("daemon: %w", err)
		}
		down.Add("close events of shims", closing(events.Close))
	}
	for _, dir := range e.paths.pins() {
		if err := netns.OpenDir(dir); err != nil {
			return nil, fmt.Errorf("daemon: %w", err)
		}
	}
	return e, e.openManagers(cfg.NRI, imageVolumes{volumes, hostpod.ImageLabel()}, counts, log, down)
}

// openManagers opens the owners of pods and containers, with the plugins that take part in their life.
func (e *engine) openManagers(cfg config.NRI, volumes imageVolumes, counts *telemetry.Metrics, log *slog.Logger, down *cleanup.Stack) (err error) {
	pods := sandbox.Options{
		Dir: e.paths.sandboxRecords(), NetNSDir: e.paths.netns(),
		NetNS:   sandbox.NetNS{Create: netns.Create, CreateOwned: createOwned, Remove: netns.Remove, List: netns.List, UserNS: netns.UserNS},
		Network: e.network, Launchers: e.handlers.launchers, Kinds: kinds{e.handlers.cfg.Handlers, e.paths}, Events: e.events, Swept: counts.Leak, Log: log,
	}
	containers := container.Options{
		Dir: e.paths.containerRecords(), BundleDir: e.paths.bundles(), Images: e.images,
		Disks: e.disks, Dirs: e.dirs, Volumes: volumes, Events: e.events, Log: log,
	}
	if cfg.Enabled {
		if e.plugins, err = nri.New(nri.Options{Socket: cfg.Socket, PluginDir: cfg.PluginDir, ConfigDir: cfg.ConfigDir, Log: log}); err != nil {
			return err
		}
		pods.Plugins, containers.Plugins = e.plugins, e.plugins
	}
	if e.sandboxes, err = sandbox.New(pods); err != nil {
		return err
	}
	down.Add("close sandboxes", closing(e.sandboxes.Close))
	containers.Sandboxes = e.sandboxes
	if e.containers, err = container.New(containers); err != nil {
		return err
	}
	down.Add("close containers", closing(e.containers.Close))
	e.sandboxes.SetContainers(e.containers)
	e.events.SetDescribe(cri.DescribeEvents(e.sandboxes, e.containers))
	return nil
}

// startPlugins lets plugins in, if there are to be any.
func (e *engine) startPlugins(down *cleanup.Stack) error {
	if e.plugins == nil {
		return nil
	}
	down.Add("close plugins", closing(e.plugins.Close))
	return e.plugins.Start(e.sandboxes, e.containers)
}

// createOwned makes a network namespace in a user namespace of the pod's own.
func createOwned(dir, id string, user sandbox.UserNamespace) (string, error) {
	ids := func(list []specs.LinuxIDMapping) (out []syscall.SysProcIDMap) {
		for _, m := range list {
			out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
		}
		return out
	}
	return netns.CreateOwned(dir, id, ids(user.UIDs), ids(user.GIDs))
}

// closing makes a step of a cleanup stack of a Close.
func closing(fn func() error) func(context.Context) error {
	return func(context.Context) error { return fn() }
}

func openImages(ctx context.Context, cfg config.Config, p paths, counts *telemetry.Metrics, log *slog.Logger) (*image.Service, error) {
	return image.Open(ctx, image.Options{
		Root: p.images(), Registries: registry.Options{HostsDir: cfg.Image.HostsDir, Mirrors: cfg.Image.Mirrors, Insecure: cfg.Image.Insecure},
		PinnedImages: cfg.Image.Pinned, SignaturePolicy: cfg.Image.SignaturePolicy, MaxConcurrentDownloads: cfg.Image.MaxConcurrentDownloads,
		PullTimeout: cfg.Image.PullTimeout.Duration, Pulled: observePull(counts), Log: log,
	})
}

// recover takes over what an earlier daemon left: pods that run go on, the rest is cleaned away.
func (e *engine) recover(ctx context.Context, log *slog.Logger) error {
	start := time.Now()
	// Until the containers are known, what a pod looks like cannot be told.
	release := e.events.Hold()
	defer release()
	if err := e.sandboxes.Recover(ctx); err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	if err := e.containers.Recover(ctx); err != nil {
		return fmt.Errorf("daemon: %w", err)
	}
	if err := e.sweepRoots(ctx); err != nil {
		log.ErrorContext(ctx, "roots of containers that are gone could not be removed", logfields.Error, err)
	}
	log.Info("took over", logfields.Sandboxes, len(e.sandboxes.List(ctx)), logfields.Containers, len(e.containers.List(ctx)),
		logfields.Duration, time.Since(start))
	return nil
}

// sweepRoots removes what containers wrote that have gone with their pods, as all do when the host boots.
func (e *engine) sweepRoots(ctx context.Context) error {
	ready := map[string]bool{}
	for _, s := range e.sandboxes.List(ctx) {
		ready[s.ID] = s.State == sandbox.Ready
	}
	keep := map[string]bool{}
	for _, c := range e.containers.List(ctx) {
		keep[c.ID] = ready[c.Config.SandboxID]
	}
	return e.roots.Sweep(ctx, func(id string) bool { return keep[id] })
}

// removePods removes every pod with all that is in it.
func (e *engine) removePods(ctx context.Context) error {
	var errs []error
	for _, s := range e.sandboxes.List(ctx) {
		errs = append(errs, e.sandboxes.Remove(ctx, s.ID))
	}
	return errors.Join(errs...)
}
