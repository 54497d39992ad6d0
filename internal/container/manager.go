package container

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/store"
	"github.com/pistis-run/pistis/internal/task"
)

// sandboxes are the pods that containers live in.
type sandboxes interface {
	Status(ctx context.Context, id string) (sandbox.Status, error)
	List(ctx context.Context) []sandbox.Status
	// Tasks is FailedPrecondition for a sandbox that is not Ready.
	Tasks(ctx context.Context, id string) (task.Service, error)
	// Ended blocks until the sandbox is not Ready any more.
	Ended(ctx context.Context, id string) (reason string, err error)
}

// images are found, and kept for the containers that use them.
type images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	// Allowed refuses an image that the node's policy does not allow to be run; ref is its name.
	Allowed(ctx context.Context, ref string, img image.Image) error
	Use(ctx context.Context, owner string, img image.Image) error
	Unuse(ctx context.Context, owner string) error // idempotent
	Owners(ctx context.Context) ([]string, error)
}

// layers turns an image into what a root file system is made of, the lowest first, in one form.
type layers interface {
	Ensure(ctx context.Context, img image.Image) ([]string, error)
}

// Options of a manager; all are needed but Plugins.
type Options struct {
	// Dir keeps the records, BundleDir a directory for each container.
	Dir, BundleDir string
	Sandboxes      sandboxes
	Images         images
	// Disks are layers for sandboxes that are VMs, Dirs for those on the host's kernel.
	Disks, Dirs layers
	Volumes     volumes
	Plugins     plugins
	Events      *event.Broker
	Log         *slog.Logger
}

// storage is what containers are made of.
type storage struct {
	images  images
	disks   layers
	dirs    layers
	volumes volumes
}

// Manager owns the containers of this node.
type Manager struct {
	storage
	records   *store.Store[record]
	names     store.Names
	bundles   string
	sandboxes sandboxes
	plugins   plugins
	events    *event.Broker
	log       *slog.Logger

	// ctx ends with Close and stops the watchers.
	ctx      context.Context
	cancel   context.CancelFunc
	watchers sync.WaitGroup

	mu         sync.Mutex // guards containers
	containers map[string]*container
}

// New opens the records. Recover must follow, after the sandboxes' own, before anything else.
func New(o Options) (*Manager, error) {
	records, err := store.Open[record](o.Dir, recordVersion)
	if err != nil {
		return nil, fmt.Errorf("containers: %w", err)
	}
	if o.Plugins == nil {
		o.Plugins = noPlugins{}
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Manager{
		storage: storage{images: o.Images, disks: o.Disks, dirs: o.Dirs, volumes: o.Volumes},
		records: records, bundles: o.BundleDir, sandboxes: o.Sandboxes, plugins: o.Plugins, events: o.Events, log: o.Log, ctx: ctx, cancel: cancel, containers: map[string]*container{},
	}, nil
}

// Close stops watching. The containers go on running.
func (m *Manager) Close() error {
	m.cancel()
	m.watchers.Wait()
	return nil
}

// Status of the container with this id, or with the only id that begins so. NotFound otherwise.
func (m *Manager) Status(_ context.Context, id string) (Status, error) {
	c, err := m.find(id)
	if err != nil {
		return Status{}, err
	}
	rec := c.snapshot()
	if rec.State == Creating {
		return Status{}, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return rec.status(), nil
}

// List all containers, the oldest first. One that is still being created is not among them.
func (m *Manager) List(context.Context) []Status {
	m.mu.Lock()
	all := slices.Collect(maps.Values(m.containers))
	m.mu.Unlock()
	var list []Status
	for _, c := range all {
		if rec := c.snapshot(); rec.State != Creating {
			list = append(list, rec.status())
		}
	}
	slices.SortFunc(list, func(a, b Status) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return list
}

// running returns the container and the processes of its sandbox. FailedPrecondition when it is not in one of the states.
func (m *Manager) running(ctx context.Context, id string, states ...State) (record, task.Service, error) {
	c, err := m.find(id)
	if err != nil {
		return record{}, nil, err
	}
	rec := c.snapshot()
	if !slices.Contains(states, rec.State) {
		return rec, nil, fmt.Errorf("container %s is %s: %w", rec.ID, rec.State, errdefs.ErrFailedPrecondition)
	}
	tasks, err := m.sandboxes.Tasks(ctx, rec.Config.SandboxID)
	return rec, tasks, err
}

func (m *Manager) bundle(id string) string { return filepath.Join(m.bundles, id) }

func (m *Manager) publish(kind event.Kind, rec record) {
	m.events.Publish(event.Event{Kind: kind, ID: rec.ID, SandboxID: rec.Config.SandboxID})
}

// newID is n random bytes in hex.
func newID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
