package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/store"
	"github.com/pistis-run/pistis/internal/task"
)

// Options of a manager; all but Kinds, Plugins and Swept are needed.
type Options struct {
	// Dir keeps the records, NetNSDir the network namespaces.
	Dir, NetNSDir string
	NetNS         NetNS
	Network       networks
	// Launchers by runtime handler.
	Launchers map[string]Launcher
	Kinds     kinds
	Plugins   plugins
	Events    *event.Broker
	// Swept is told what was nobody's and whether it could be removed.
	Swept func(kind string, err error)
	Log   *slog.Logger
}

// audience is who is told of what happens.
type audience struct {
	plugins plugins
	events  *event.Broker
	swept   func(kind string, err error)
}

// Manager owns the sandboxes of this node.
type Manager struct {
	audience
	records    *store.Store[record]
	names      store.Names
	netnsDir   string
	netns      NetNS
	network    networks
	launchers  map[string]Launcher
	kinds      kinds
	log        *slog.Logger
	containers containers

	// ctx ends with Close and stops the watchers.
	ctx      context.Context
	cancel   context.CancelFunc
	watchers sync.WaitGroup

	mu        sync.Mutex // guards sandboxes
	sandboxes map[string]*sandbox
}

// New opens the records. SetContainers and then Recover must follow before anything else.
func New(o Options) (*Manager, error) {
	records, err := store.Open[record](o.Dir, recordVersion)
	if err != nil {
		return nil, fmt.Errorf("sandboxes: %w", err)
	}
	if o.Kinds == nil {
		o.Kinds = noKinds{}
	}
	if o.Plugins == nil {
		o.Plugins = noPlugins{}
	}
	if o.Swept == nil {
		o.Swept = func(string, error) {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Manager{
		records: records, netnsDir: o.NetNSDir, netns: o.NetNS, network: o.Network, launchers: o.Launchers, kinds: o.Kinds,
		audience: audience{plugins: o.Plugins, events: o.Events, swept: o.Swept},
		log:      o.Log, ctx: ctx, cancel: cancel, sandboxes: map[string]*sandbox{},
	}, nil
}

// SetContainers says who stops and removes the containers of a sandbox.
func (m *Manager) SetContainers(c containers) { m.containers = c }

// Events of the sandboxes.
func (m *Manager) Events() *event.Broker { return m.events }

// Status of the sandbox with this id, or with the only id that begins so. NotFound otherwise.
func (m *Manager) Status(_ context.Context, id string) (Status, error) {
	sb, err := m.find(id)
	if err != nil {
		return Status{}, err
	}
	status, visible := m.status(sb)
	if !visible {
		return Status{}, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return status, nil
}

// List all sandboxes, the oldest first. One that is still being created is not among them.
func (m *Manager) List(context.Context) []Status {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.sandboxes))
	m.mu.Unlock()
	var list []Status
	for _, sb := range all {
		if status, visible := m.status(sb); visible {
			list = append(list, status)
		}
	}
	slices.SortFunc(list, func(a, b Status) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return list
}

func (m *Manager) status(sb *sandbox) (status Status, visible bool) {
	rec, instance := sb.snapshot()
	status = Status{
		ID: rec.ID, Config: rec.Config, State: rec.State, Created: rec.Created, Reason: rec.Reason,
		IPs: slices.Clone(rec.IPs), NetNS: rec.NetNS,
	}
	if rec.Config.User != nil && rec.NetNS != "" {
		status.UserNS = m.netns.UserNS(rec.NetNS)
	}
	if launcher, ok := m.launchers[rec.Config.Handler]; ok {
		status.VM = launcher.VM()
	}
	if instance != nil {
		status.Info = instance.Info()
	}
	return status, rec.State != Creating
}

// Tasks are the processes of a Ready sandbox; FailedPrecondition for another state.
func (m *Manager) Tasks(_ context.Context, id string) (task.Service, error) {
	sb, err := m.find(id)
	if err != nil {
		return nil, err
	}
	rec, instance := sb.snapshot()
	if rec.State != Ready || instance == nil {
		because := ""
		if rec.Reason != "" {
			because = ": " + rec.Reason
		}
		return nil, fmt.Errorf("sandbox %s is %s%s: %w", rec.ID, rec.State, because, errdefs.ErrFailedPrecondition)
	}
	return instance.Tasks(), nil
}

// Stats of a Ready sandbox with all its containers, or of some containers alone; see [task.Statter]. NotImplemented where
// the handler has none.
func (m *Manager) Stats(ctx context.Context, id string, containers ...string) (task.Stats, error) {
	tasks, err := m.Tasks(ctx, id)
	if err != nil {
		return task.Stats{}, err
	}
	statter, ok := tasks.(task.Statter)
	if !ok {
		return task.Stats{}, fmt.Errorf("sandbox %s: its runtime has no statistics: %w", id, errdefs.ErrNotImplemented)
	}
	return statter.Stats(ctx, containers...)
}

// Counters of the VMM of a Ready sandbox; see [task.Meter].
func (m *Manager) Counters(ctx context.Context, id string) ([]task.Counter, error) {
	tasks, err := m.Tasks(ctx, id)
	if err != nil {
		return nil, err
	}
	meter, ok := tasks.(task.Meter)
	if !ok {
		return nil, fmt.Errorf("sandbox %s: its runtime has no counters: %w", id, errdefs.ErrNotImplemented)
	}
	return meter.Counters(ctx)
}

// Ended blocks until the sandbox is no longer Ready and returns the reason, empty for one that was stopped.
// A sandbox that is not known has ended too.
func (m *Manager) Ended(ctx context.Context, id string) (reason string, err error) {
	sb, err := m.find(id)
	if errdefs.IsNotFound(err) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	select {
	case <-sb.ended:
		rec, _ := sb.snapshot()
		return rec.Reason, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Close stops watching and lets go of the sandboxes, which go on running.
func (m *Manager) Close() error {
	m.cancel()
	m.watchers.Wait()
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.sandboxes))
	m.mu.Unlock()
	var errs []error
	for _, sb := range all {
		if _, instance := sb.snapshot(); instance != nil {
			errs = append(errs, instance.Close())
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) launcher(handler string) (Launcher, error) {
	if launcher, ok := m.launchers[handler]; ok {
		return launcher, nil
	}
	return nil, fmt.Errorf("runtime handler %q is not configured, there are %s: %w", handler,
		strings.Join(slices.Sorted(maps.Keys(m.launchers)), ", "), errdefs.ErrInvalidArgument)
}

func (m *Manager) publish(kind event.Kind, id string) {
	m.events.Publish(event.Event{Kind: kind, ID: id, SandboxID: id})
}
