package hostpod

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/logfields"
	monitorclient "github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rootfs"
	"github.com/pistis-run/pistis/internal/rtnl"
	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/userdb"
)

// tasks are the processes of one pod: its monitor's, with what the monitor knows nothing of.
type tasks struct {
	monitor
	l *Launcher
	p pod
}

var (
	_ task.Service      = (*tasks)(nil)
	_ task.Attacher     = (*tasks)(nil)
	_ task.Resizer      = (*tasks)(nil)
	_ task.LogReopener  = (*tasks)(nil)
	_ task.Updater      = (*tasks)(nil)
	_ task.Checkpointer = (*tasks)(nil)
	_ task.Statter      = (*tasks)(nil)
	_ task.Dialer       = (*tasks)(nil)
)

// Create makes a container's root and its final spec. The runtime is called when it is started.
func (t *tasks) Create(ctx context.Context, req task.CreateRequest) (_ task.User, err error) {
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	undo.Add("forget container", func(context.Context) error { return t.p.forget(req.ID) })
	if err := t.p.remember(req.ID); err != nil {
		return task.User{}, fmt.Errorf("container directory: %w", err)
	}
	undo.Add("remove root", func(ctx context.Context) error { return t.l.Roots.Remove(ctx, req.ID) })
	own, err := t.l.labelsOf(t.p, req.Spec.Process.SelinuxLabel)
	if err != nil {
		return task.User{}, err
	}
	owners := rootfs.Options{MountLabel: own.files}
	if t.p.cfg.User != nil {
		owners.UserNS = t.p.user()
	}
	mounting, mounted := span.Start(ctx, "root file system")
	root, err := t.l.Roots.Mount(mounting, req.ID, req.Layers, owners)
	mounted(err)
	if err != nil {
		return task.User{}, err
	}
	user, err := userdb.Resolve(root, req.User)
	if err != nil {
		return task.User{}, err
	}
	if err := t.pinPID(ctx, req); err != nil {
		return task.User{}, err
	}
	t.p.finish(req.Spec, req, root, user.User)
	own.set(req.Spec)
	if err := t.l.relabel(req.Relabel, own.files); err != nil {
		return task.User{}, err
	}
	if err := t.l.clamp.apply(req.Spec); err != nil {
		return task.User{}, err
	}
	if err := confineByHost(req.Spec); err != nil {
		return task.User{}, err
	}
	if err := writeSpec(req.Bundle, req.Spec); err != nil {
		return task.User{}, err
	}
	calling, called := span.Call(ctx, "monitor create")
	err = t.monitor.Create(calling, monitorclient.CreateRequest{
		ID: req.ID, Bundle: req.Bundle, CgroupsPath: req.Spec.Linux.CgroupsPath,
		LogPath: req.LogPath, Terminal: req.Terminal, Stdin: req.Stdin, StdinOnce: req.StdinOnce,
	})
	called(err)
	if err != nil {
		return task.User{}, err
	}
	undo.Release()
	return user.User, nil
}

// Start runs what Create or Exec made.
func (t *tasks) Start(ctx context.Context, id task.ID) (pid uint32, err error) {
	ctx, end := span.Call(ctx, "monitor start")
	defer func() { end(err) }()
	return t.monitor.Start(ctx, id)
}

// pinPID keeps the PID namespace of another container that is to be joined: that one may have ended, and its pid be
// another's, when this one is started.
func (t *tasks) pinPID(ctx context.Context, req task.CreateRequest) error {
	if req.PID.Container == "" {
		return nil
	}
	return t.pinPIDOf(ctx, req.PID.Container, t.p.targetPID(req.ID))
}

// pinPIDOf pins the PID namespace of a running container at a path.
func (t *tasks) pinPIDOf(ctx context.Context, container, path string) error {
	pid, err := t.monitor.InitPID(ctx, container)
	if err != nil {
		return fmt.Errorf("process namespace: %w", err)
	}
	if err := pin(fmt.Sprintf("/proc/%d/ns/pid", pid), path); err != nil {
		return err
	}
	// It was the container's if the container still runs: until it has ended, nobody else has its pid.
	if _, err := t.monitor.InitPID(ctx, container); err != nil {
		return fmt.Errorf("process namespace: %w", err)
	}
	return nil
}

func writeSpec(bundle string, spec *specs.Spec) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}

// Delete forgets a process, and a container with its root.
func (t *tasks) Delete(ctx context.Context, id task.ID) error {
	err := t.monitor.Delete(ctx, id)
	if id.Exec != "" || err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err := t.l.Roots.Remove(ctx, id.Container); err != nil {
		return err
	}
	return errors.Join(err, t.p.forget(id.Container))
}

// Update changes the limits of a container.
func (t *tasks) Update(ctx context.Context, container string, resources *specs.LinuxResources) error {
	wanted := *resources
	if err := t.l.clamp.resources(&wanted); err != nil {
		return err
	}
	if err := t.fits(container, wanted.Memory); err != nil {
		return err
	}
	return t.monitor.Update(ctx, container, &wanted)
}

// fits refuses a limit below what a container uses: cgroup v2 takes it, and kills the container.
func (t *tasks) fits(container string, limits *specs.LinuxMemory) error {
	if limits == nil || limits.Limit == nil || *limits.Limit <= 0 {
		return nil
	}
	usage, err := t.l.cgroups.Usage(t.p.cgroupsPath(container))
	if errdefs.IsNotFound(err) {
		return nil // it does not run
	} else if err != nil {
		return err
	}
	if used := usage.Memory.WorkingSet; used > uint64(*limits.Limit) {
		return fmt.Errorf("a memory limit of %d bytes is less than the %d that the container uses: %w", *limits.Limit, used, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Stats reads the pod's cgroups, which needs no other process.
func (t *tasks) Stats(ctx context.Context, containers ...string) (task.Stats, error) {
	stats := task.Stats{At: time.Now()}
	ids := containers
	if len(ids) == 0 {
		var err error
		if ids, err = t.p.containers(); err != nil {
			return stats, err
		}
	}
	for _, id := range ids {
		if id == t.p.initID() {
			continue
		}
		usage, err := t.usage(ctx, id)
		if errdefs.IsNotFound(err) {
			continue // it does not run
		} else if err != nil {
			t.l.Log.WarnContext(ctx, "a container is missing from the statistics", logfields.Container, id, logfields.Error, err)
			continue
		}
		usage.ID = id
		// One whose files cannot be counted has its other numbers all the same.
		usage.WritableBytes, usage.WritableInodes, err = t.l.Roots.Usage(ctx, id)
		if ctx.Err() != nil {
			return stats, context.Cause(ctx)
		} else if err != nil && !errdefs.IsNotFound(err) {
			t.l.Log.WarnContext(ctx, "the writable layer of a container is missing from the statistics", logfields.Container, id, logfields.Error, err)
		}
		stats.Containers = append(stats.Containers, usage)
	}
	if len(containers) > 0 {
		return stats, nil
	}
	t.ofPod(&stats)
	writable, err := t.l.Roots.FileSystem()
	if err != nil {
		return stats, err
	}
	stats.Writable = &writable
	interfaces, err := t.interfaces()
	stats.Interfaces = interfaces
	return stats, err
}

// usage of a container, by who knows it better than the host's cgroups, if anybody does. NotFound for one that does not run.
func (t *tasks) usage(ctx context.Context, id string) (task.ContainerStats, error) {
	if m, ok := t.monitor.(meter); ok {
		return m.Usage(ctx, id)
	}
	return t.l.cgroups.Usage(t.p.cgroupsPath(id))
}

// ofPod fills in what the pod uses as a whole: its cgroup's numbers where it has one of its own, else the sum.
func (t *tasks) ofPod(stats *task.Stats) {
	if t.p.own || t.p.cfg.CgroupParent != "" {
		if cpu, memory, err := t.l.cgroups.Total(t.p.group); err == nil {
			stats.CPU, stats.Memory, stats.IOPSI = cpu, memory, t.l.cgroups.IOPressure(t.p.group)
			return
		}
	}
	for _, c := range stats.Containers {
		stats.CPU.UsageNS += c.CPU.UsageNS
		stats.Memory.Usage += c.Memory.Usage
		stats.Memory.WorkingSet += c.Memory.WorkingSet
		stats.Memory.RSS += c.Memory.RSS
		stats.Memory.Swap += c.Memory.Swap
		stats.Memory.PageFaults += c.Memory.PageFaults
		stats.Memory.MajorPageFaults += c.Memory.MajorPageFaults
	}
}

// interfaces of the pod; none on the host's network, whose traffic is not the pod's.
func (t *tasks) interfaces() ([]task.Interface, error) {
	if t.p.netns == "" {
		return nil, nil
	}
	var found []task.Interface
	err := netns.Do(t.p.netns, func() error {
		links, err := rtnl.Dump(netlink.LinkList)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		for _, link := range links {
			attrs := link.Attrs()
			if s := attrs.Statistics; s != nil && attrs.Flags&net.FlagLoopback == 0 && attrs.Flags&net.FlagUp != 0 {
				found = append(found, task.Interface{
					Name: attrs.Name,
					Rx:   task.Traffic{Bytes: s.RxBytes, Packets: s.RxPackets, Errors: s.RxErrors, Dropped: s.RxDropped},
					Tx:   task.Traffic{Bytes: s.TxBytes, Packets: s.TxPackets, Errors: s.TxErrors, Dropped: s.TxDropped},
				})
			}
		}
		return nil
	})
	return found, err
}

// instance is one running pod.
type instance struct {
	tasks *tasks
	info  map[string]string
}

func (l *Launcher) instance(p pod, m monitor) *instance {
	return &instance{tasks: &tasks{monitor: m, l: l, p: p}, info: map[string]string{
		"monitorPid": fmt.Sprint(m.PID()), "cgroup": "/" + p.group, "runtime": filepath.Base(l.RuntimeRoot),
	}}
}

func (i *instance) Tasks() task.Service { return i.tasks }

// Wait blocks until the pod's monitor has ended, or its first process.
func (i *instance) Wait(ctx context.Context) (string, error) {
	if !i.tasks.p.hasInit() {
		return i.tasks.monitor.WaitEnd(ctx)
	}
	ctx, cancel := context.WithCancel(ctx)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	defer cancel()
	type end struct {
		reason string
		err    error
	}
	ends := make(chan end, 2)
	waiting.Go(func() {
		reason, err := i.tasks.monitor.WaitEnd(ctx)
		ends <- end{reason, err}
	})
	waiting.Go(func() {
		exit, err := i.tasks.Wait(ctx, task.ID{Container: i.tasks.p.initID()})
		if err != nil {
			return // the monitor's end says more
		}
		reason := cmp.Or(exit.Reason, fmt.Sprintf("the first process of its PID namespace ended with %d, and all others with it", exit.Code))
		if i.tasks.p.shim && exit.Reason == "" {
			reason = fmt.Sprintf("its first process, which the containers live with, ended with %d", exit.Code)
		}
		ends <- end{reason, nil}
	})
	first := <-ends
	return first.reason, first.err
}

// Stop ends all containers and the monitor.
func (i *instance) Stop(ctx context.Context) error { return i.tasks.monitor.Shutdown(ctx, true) }

func (i *instance) Info() map[string]string { return i.info }
func (i *instance) Close() error            { return i.tasks.monitor.Close() }
