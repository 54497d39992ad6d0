package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sync/semaphore"

	"github.com/pistis-run/pistis/internal/image/registry"
	"github.com/pistis-run/pistis/internal/image/signatures"
	"github.com/pistis-run/pistis/internal/signature"
)

const (
	namespace = "pistis"

	defaultDownloads   = 3
	defaultPullTimeout = 5 * time.Minute
	lockTimeout        = 2 * time.Second
	// cleanupTimeout bounds what goes on after the caller has gone.
	cleanupTimeout = 5 * time.Minute
	// resumeWindow is how long an interrupted pull's downloads are kept for the next one.
	resumeWindow    = time.Hour
	janitorInterval = 10 * time.Minute
)

// Options of a Service.
type Options struct {
	// Root is the directory of the store. It is made where it does not exist.
	Root string
	// Registries is how they are reached.
	Registries registry.Options
	// PinnedImages are names of images that the kubelet is told not to remove, or patterns of names with * at the end, or
	// at both ends.
	PinnedImages []string
	// SignaturePolicy is a file in the format of containers-policy.json(5), which says what may be pulled and run; empty: all.
	SignaturePolicy string
	// MaxConcurrentDownloads of blobs over all pulls; 0 is 3.
	MaxConcurrentDownloads int
	// PullTimeout ends a pull that makes no progress for so long; 0 is five minutes.
	PullTimeout time.Duration
	// Pulled is called at the end of each pull, however many asked for it, with the size of its blobs as far as they came.
	// It may be nil.
	Pulled func(bytes int64, d time.Duration, err error)
	// Log is where the progress of pulls goes; nil is slog.Default().
	Log *slog.Logger
}

// forms are what another package makes of layers, such as disks for virtual machines.
type forms interface {
	// Begin begins to make the form of the uppermost of a stack of layers, or goes on with it. wait returns when it is there; it
	// has to be called.
	Begin(ctx context.Context, stack []Layer) (wait func() error)
	// Collect removes the forms of all layers that inUse does not name, by DiffID.
	Collect(ctx context.Context, inUse func() (map[digest.Digest]struct{}, error)) error
	// Usage is what the forms occupy.
	Usage(ctx context.Context) (bytes, inodes uint64, err error)
}

// Service is the node's images.
type Service struct {
	opts      Options
	clog      *log.Entry
	registry  *registry.Registries
	pinned    []pin
	platform  platforms.MatchComparer
	downloads *semaphore.Weighted
	blobs     *keyedMutex[digest.Digest]
	stores
	background

	mu      sync.Mutex
	forms   []forms
	flights map[flightKey]*flight
	active  map[string]struct{}              // leases of this process's pulls, imports and exports
	pending map[*flight][]digest.Digest      // layers whose forms are made before the image has a name
	parsed  map[digest.Digest]parsedManifest // by the manifest's digest; content never changes
}

// stores are containerd's, in one database.
type stores struct {
	bolt    *bolt.DB
	db      *metadata.DB
	content content.Store
	images  images.Store
	// signatures are those that images were pulled with.
	signatures *signatures.Store
	leases     leases.Manager
}

// background is what the pulls run in; it ends with Close.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	// swept is closed when what a process that died left behind has been removed.
	swept chan struct{}
}

// Open opens the store in opts.Root, which it owns until Close, and begins to remove what a process that died left behind.
// FailedPrecondition when another process has it open.
func Open(ctx context.Context, opts Options) (*Service, error) {
	s, err := newService(opts)
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.open(s.scope(ctx)); err != nil {
		return nil, fmt.Errorf("image store %s: %w", opts.Root, errors.Join(classify(err), s.closeDB()))
	}
	s.ctx, s.cancel = context.WithCancel(s.scope(context.WithoutCancel(ctx)))
	s.swept = make(chan struct{})
	s.wg.Go(s.janitor)
	return s, nil
}

func newService(opts Options) (*Service, error) {
	if opts.MaxConcurrentDownloads <= 0 {
		opts.MaxConcurrentDownloads = defaultDownloads
	}
	if opts.PullTimeout <= 0 {
		opts.PullTimeout = defaultPullTimeout
	}
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	s := &Service{
		opts: opts, clog: containerdLog(opts.Log),
		platform:  platforms.Only(platforms.DefaultSpec()),
		downloads: semaphore.NewWeighted(int64(opts.MaxConcurrentDownloads)),
		blobs:     newKeyedMutex[digest.Digest](),
		flights:   map[flightKey]*flight{}, active: map[string]struct{}{},
		pending: map[*flight][]digest.Digest{}, parsed: map[digest.Digest]parsedManifest{},
	}
	for _, name := range opts.PinnedImages {
		p, err := parsePin(name)
		if err != nil {
			return nil, err
		}
		s.pinned = append(s.pinned, p)
	}
	if opts.SignaturePolicy != "" {
		if _, err := signature.Load(opts.SignaturePolicy); err != nil {
			return nil, err
		}
	}
	var err error
	s.registry, err = registry.New(opts.Registries)
	return s, err
}

func (s *Service) open(ctx context.Context) error {
	if err := os.MkdirAll(s.opts.Root, 0o700); err != nil {
		return err
	}
	path := filepath.Join(s.opts.Root, "metadata.db")
	return guarded(path, func() error { return s.openDB(ctx, path) })
}

func (s *Service) openDB(ctx context.Context, path string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("in use by another process: %w", errdefs.ErrFailedPrecondition)
	case err != nil && errors.As(err, new(syscall.Errno)):
		return fmt.Errorf("metadata.db: %w", err)
	case err != nil:
		return damagedDB(path, err)
	}
	s.bolt = db
	if err := readAll(db); err != nil {
		return damagedDB(path, err)
	}
	blobs, err := local.NewStore(filepath.Join(s.opts.Root, "content"))
	if err != nil {
		return err
	}
	s.signatures = &signatures.Store{Dir: filepath.Join(s.opts.Root, "signatures")}
	s.db = metadata.NewDB(db, blobs, nil)
	if err := s.db.Init(ctx); err != nil {
		return err
	}
	s.content, s.images, s.leases = s.db.ContentStore(), metadata.NewImageStore(s.db), metadata.NewLeaseManager(s.db)
	return s.recover(ctx, blobs)
}

// SetForms says what is made of layers besides their content. All forms go with the content, the first one is made at
// each pull. It is called once, before the first pull.
func (s *Service) SetForms(all ...forms) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forms = all
}

func (s *Service) getForms() []forms {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forms
}

// Close ends the pulls that are under way, waits for them and releases the store. What they have downloaded stays
// for the next pull.
func (s *Service) Close() error {
	s.cancel()
	s.wg.Wait()
	return s.closeDB()
}

func (s *Service) closeDB() error {
	if s.bolt == nil {
		return nil
	}
	return s.bolt.Close()
}

// scope gives ctx what containerd's stores expect of it.
func (s *Service) scope(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, namespace), s.clog)
}

// detached is a context for cleaning up after ctx ended.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
}
