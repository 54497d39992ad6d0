package vmpod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/podfiles"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/span"
)

// scratchSuffix ends the names of writable disks, which begin with the sandbox's id.
const scratchSuffix = ".img"

// Options of a launcher. All but CgroupParent, Units and Firecracker are needed.
type Options struct {
	Config config.VM
	// Firecracker is for VMs that it runs.
	Firecracker config.Firecracker
	// Shim is the path of containerd-shim-pistis-v2.
	Shim string
	// Host says how VMs are run on this host. It is asked at each launch.
	Host func(ctx context.Context) (Machine, error)
	// NewScratch makes an empty writable disk.
	NewScratch func(ctx context.Context, path string, sizeBytes int64) error
	// UIDs are the users that VMMs run as; one for all launchers of the daemon.
	UIDs *UIDs
	// Dir has a bundle directory for each sandbox, ScratchDir a writable disk, ConsoleDir the consoles of VMs that did not end
	// as they should. Launchers may share them.
	Dir, ScratchDir, ConsoleDir string
	// CgroupParent is for pods that name none: a path, or a slice where there are Units.
	CgroupParent string
	// Units makes cgroups where that is systemd's business; nil: nobody does.
	Units units
	// Booted is told how long each phase of a start took, Swept what was nobody's and whether it could be removed. Both may
	// be nil.
	Booted func(phase string, d time.Duration)
	Swept  func(kind string, err error)
	Log    *slog.Logger
}

// units is the host's systemd, which makes cgroups as units.
type units interface {
	// StartScope moves a process into a scope that is made for it in a slice, which is made too if it is not there. The
	// scope ends with its last process.
	StartScope(ctx context.Context, name, slice string, pid int) error
}

// Guest is what VMs boot: files of the host.
type Guest struct {
	Kernel, Initrd string
	// Modules is an image with modules that guests load on demand; empty is none.
	Modules string
}

// Launcher runs sandboxes as virtual machines.
type Launcher struct {
	Options
	shims shims
}

var _ sandbox.Launcher = (*Launcher)(nil)

// New checks the options and makes the directories.
func New(o Options) (*Launcher, error) { return newLauncher(o, shimProcesses{}) }

func newLauncher(o Options, s shims) (*Launcher, error) {
	if o.Shim == "" || o.Host == nil || o.NewScratch == nil || o.UIDs == nil || o.Dir == "" || o.ScratchDir == "" || o.ConsoleDir == "" || o.Log == nil {
		return nil, fmt.Errorf("vm pods: an option is missing: %w", errdefs.ErrInvalidArgument)
	}
	for _, dir := range []string{o.Dir, o.ScratchDir, o.ConsoleDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("vm pods: %w", err)
		}
	}
	if o.Booted == nil {
		o.Booted = func(string, time.Duration) {}
	}
	if o.Swept == nil {
		o.Swept = func(string, error) {}
	}
	return &Launcher{Options: o, shims: s}, nil
}

// VM is true: the pod has a kernel of its own.
func (*Launcher) VM() bool { return true }

// Validate refuses what a virtual machine cannot share with the host.
func (l *Launcher) Validate(cfg sandbox.Config) error {
	if err := cgroup.CheckParent(cfg.CgroupParent, l.Units != nil); err != nil {
		return err
	}
	var shared []string
	for name, asked := range map[string]bool{"network": cfg.HostNetwork, "PID": cfg.HostPID, "IPC": cfg.HostIPC} {
		if asked {
			shared = append(shared, name)
		}
	}
	if cfg.User != nil {
		return fmt.Errorf("a microVM isolates the pod's users from the host's, and user namespaces are not offered in it: leave hostUsers unset, or use a RuntimeClass of the host's kernel: %w", errdefs.ErrInvalidArgument)
	}
	if len(shared) > 0 {
		return fmt.Errorf("a microVM has a kernel of its own and cannot join the host's %s namespace: "+
			"remove hostNetwork, hostPID and hostIPC from the pod, or use a RuntimeClass of the host's kernel: %w",
			strings.Join(shared, " or "), errdefs.ErrInvalidArgument)
	}
	return nil
}

// state is what is kept in the sandbox's record.
type state struct {
	// UID that the VMM runs as; 0 is the shim's.
	UID uint32
}

func (l *Launcher) bundle(id string) string  { return filepath.Join(l.Dir, id) }
func (l *Launcher) scratch(id string) string { return filepath.Join(l.ScratchDir, id+scratchSuffix) }

// Launch boots the pod's VM.
func (l *Launcher) Launch(ctx context.Context, req sandbox.LaunchRequest) (sandbox.Instance, error) {
	m, err := l.decide(ctx, req)
	if err != nil {
		return nil, err
	}
	if m.uid, err = l.UIDs.allocate(req.ID); err != nil {
		return nil, err
	}
	saved, err := json.Marshal(state{UID: m.uid})
	if err != nil {
		return nil, err
	}
	if err := req.Save(saved); err != nil {
		return nil, err
	}
	client, err := l.shims.launch(ctx, launchRequest{
		shim: l.Shim, id: req.ID, bundle: l.bundle(req.ID), netns: req.NetNS,
		options: sandboxOptions(req.Config, l.Config, m), annotations: req.Config.Annotations, adopt: l.adopt(ctx, req),
		prepare: func() error {
			ctx, end := span.Start(ctx, "scratch disk")
			err := l.NewScratch(ctx, m.scratch, int64(l.Config.ScratchMiB)<<20)
			end(err)
			if err != nil {
				return err
			}
			return failpoint.Hit(ctx, "vm.scratch")
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, l.whole(req.ID))
	}
	i, err := l.instance(ctx, req.ID, client)
	if err != nil {
		return nil, err
	}
	for _, phase := range i.phases {
		l.Booted(phase.name, phase.took)
	}
	return i, nil
}

// decide finds out all that the VM needs, before anything is made.
func (l *Launcher) decide(ctx context.Context, req sandbox.LaunchRequest) (machine, error) {
	host, err := l.Host(ctx)
	if err != nil {
		return machine{}, err
	}
	network, err := req.Connected(ctx)
	if err != nil {
		return machine{}, err
	}
	resolv, err := podfiles.ResolvConf(req.Config.DNS, network.DNS)
	if err != nil {
		return machine{}, err
	}
	bounds, err := boundsOf(l.Config)
	if err != nil {
		return machine{}, err
	}
	vcpus, memory := size(req.Config, l.Config, bounds)
	if err := bounds.check(l.Config, vcpus, memory); err != nil {
		return machine{}, err
	}
	tuning, err := tuningOf(l.Firecracker, l.Config, host)
	if err != nil {
		return machine{}, err
	}
	return machine{
		Machine: host, tuning: tuning,
		scratch: l.scratch(req.ID), cgroup: l.cgroup(req),
		hosts: podfiles.Hosts(req.Config.Hostname, network.IPs), resolv: resolv, vcpus: vcpus, memory: memory, bounds: bounds,
	}, nil
}

func (l *Launcher) cgroupParent(req sandbox.LaunchRequest) string {
	return cmp.Or(req.Config.CgroupParent, l.CgroupParent)
}

// cgroup is the path of the VM's.
func (l *Launcher) cgroup(req sandbox.LaunchRequest) string {
	if l.Units != nil {
		return cgroup.Path(filepath.Base(l.cgroupParent(req)), cgroup.Scope(req.ID))
	}
	return cgroup.Path(l.cgroupParent(req), "pistis-"+req.ID)
}

// adopt puts the shim into its scope, and so all that it starts; nil where there is no systemd to make one.
func (l *Launcher) adopt(ctx context.Context, req sandbox.LaunchRequest) func(pid int) error {
	if l.Units == nil {
		return nil
	}
	return func(pid int) error {
		return l.Units.StartScope(ctx, cgroup.Scope(req.ID), filepath.Base(l.cgroupParent(req)), pid)
	}
}

// Reconnect attaches to the shim of a sandbox.
func (l *Launcher) Reconnect(ctx context.Context, req sandbox.LaunchRequest) (sandbox.Instance, error) {
	if err := l.claim(req); err != nil {
		return nil, err
	}
	client, err := l.shims.connect(ctx, l.bundle(req.ID))
	if err != nil {
		return nil, err
	}
	i, err := l.instance(ctx, req.ID, client)
	if err != nil {
		return nil, err // not a typed nil
	}
	return i, nil
}

// claim marks the uid that the sandbox was given as taken.
func (l *Launcher) claim(req sandbox.LaunchRequest) error {
	if req.State == nil {
		return nil
	}
	var s state
	if err := json.Unmarshal(req.State, &s); err != nil {
		return fmt.Errorf("state of the VM: %w: %w", err, errdefs.ErrDataLoss)
	}
	return l.UIDs.claim(req.ID, s.UID)
}

// instance asks the shim once what it runs.
func (l *Launcher) instance(ctx context.Context, id string, client client) (*instance, error) {
	info, err := client.Info(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("shim: %w", err), client.Close())
	}
	bounds, err := boundsOf(l.Config)
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	var phases []phase
	for _, p := range info.GetVm().GetPhases() {
		phases = append(phases, phase{p.GetName(), p.GetDuration().AsDuration()})
	}
	i := &instance{
		client: client, phases: phases, bundle: bundle.Dir(l.bundle(id)),
		whole: func() string { return l.whole(id) },
		size:  func(cfg sandbox.Config) (uint32, uint64) { return size(cfg, l.Config, bounds) },
	}
	i.learn(info)
	return i, nil
}

// Cleanup ends the shim and its VM and removes what was made for them.
func (l *Launcher) Cleanup(ctx context.Context, req sandbox.LaunchRequest) error {
	if err := l.claim(req); err != nil && !errdefs.IsAlreadyExists(err) {
		l.Log.WarnContext(ctx, "state of a VM cannot be read; it is removed without", logfields.Sandbox, req.ID, logfields.Error, err)
	}
	if err := l.remove(ctx, req.ID); err != nil {
		return err
	}
	l.UIDs.release(req.ID)
	return nil
}

func (l *Launcher) remove(ctx context.Context, id string) error {
	l.keepConsole(ctx, id)
	if err := l.shims.cleanup(ctx, l.bundle(id)); err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	if err := os.Remove(l.scratch(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("scratch disk: %w", err)
	}
	return nil
}

// Sweep removes bundles, with the shims that they belong to, and disks of sandboxes that nobody knows.
func (l *Launcher) Sweep(ctx context.Context, keep map[string]bool) error {
	lost := map[string]bool{}
	for dir, suffix := range map[string]string{l.Dir: "", l.ScratchDir: scratchSuffix} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		for _, entry := range entries {
			if id, ours := strings.CutSuffix(entry.Name(), suffix); ours && !keep[id] {
				lost[id] = true
			}
		}
	}
	var errs []error
	for id := range lost {
		l.Log.InfoContext(ctx, "removing a virtual machine that belongs to no sandbox", logfields.Sandbox, id)
		err := l.remove(ctx, id)
		l.Swept("vm", err)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// describe flattens what a shim says for verbose status.
func describe(info *shimv1.InfoResponse) map[string]string {
	vm := info.GetVm()
	out := map[string]string{
		"shimPid":           fmt.Sprint(info.GetShimPid()),
		"shimVersion":       info.GetShimVersion(),
		"vmmPid":            fmt.Sprint(vm.GetVmmPid()),
		"hypervisor":        vm.GetHypervisor(),
		"hypervisorVersion": vm.GetVersion(),
		"acceleration":      vm.GetAcceleration(),
		"kernel":            vm.GetKernel(),
		"agentVersion":      vm.GetAgentVersion(),
		"vcpus":             fmt.Sprint(vm.GetVcpus()),
		"memoryBytes":       fmt.Sprint(vm.GetMemoryBytes()),
	}
	for _, phase := range vm.GetPhases() {
		out["phase."+phase.GetName()] = phase.GetDuration().AsDuration().String()
	}
	return out
}
