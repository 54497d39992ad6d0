package taskshim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/task"
)

// Options say which shim is called, and how.
type Options struct {
	// Binary finds the shim, or says why there is none.
	Binary func() (path string, err error)
	// Options are the shim's own; nil: none.
	Options *anypb.Any
	// Events is the socket of Serve.
	Events string
	// SocketDir is where shims that ask make their sockets; its path is short.
	SocketDir string
	Log       *slog.Logger
}

// Pod is one pod whose containers shims have.
type Pod struct {
	*monitor.Client
	opts Options
	dir  string // of the records
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup // goroutines that wait for exits

	mu         sync.Mutex
	containers map[string]*container
	shims      map[string]*connection // by address
}

// connection is one to a shim, for all containers that it has.
type connection struct {
	*shimclient.Shim
	users int // guarded by the pod's mu
}

// Launch starts the pod's monitor. The shim is called for the first container. On error nothing is left.
func Launch(ctx context.Context, cfg monitor.Config, opts Options) (_ *Pod, err error) {
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	cfg.Runtime, cfg.RuntimeArgs = "", nil
	m, err := monitor.Launch(ctx, cfg)
	if err != nil {
		return nil, err
	}
	undo.Add("end monitor", func(ctx context.Context) error {
		return errors.Join(m.Shutdown(ctx, true), m.Close(), monitor.Cleanup(ctx, cfg.Dir))
	})
	p := newPod(m, cfg.Dir, opts)
	if err := os.Mkdir(p.dir, 0o700); err != nil {
		return nil, fmt.Errorf("records of shims: %w", err)
	}
	undo.Release()
	return p, nil
}

func newPod(m *monitor.Client, monitorDir string, opts Options) *Pod {
	p := &Pod{Client: m, opts: opts, dir: records(monitorDir), containers: map[string]*container{}, shims: map[string]*connection{}}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// Connect connects to a pod that an earlier daemon has launched. What its containers did meanwhile is told then; execs of
// that daemon are killed, as nobody has their streams. Unavailable when the monitor has gone.
func Connect(ctx context.Context, monitorDir string, opts Options) (*Pod, error) {
	m, err := monitor.Connect(ctx, monitorDir)
	if err != nil {
		return nil, err
	}
	p := newPod(m, monitorDir, opts)
	found, err := readRecords(p.dir)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	for id, rec := range found {
		c := p.add(id, rec)
		if rec.Stage != stageMade {
			continue // a start that was cut short is begun again by whoever wants it
		}
		if err := c.connect(ctx); err != nil && !errdefs.IsUnavailable(err) {
			return nil, errors.Join(err, p.Close())
		}
		c.follow()
		c.killExecs()
	}
	return p, nil
}

func (p *Pod) add(id string, rec record) *container {
	c := &container{pod: p, id: id, rec: rec, turn: make(chan struct{}, 1), execs: map[string]*execution{}}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.containers[id] = c
	return c
}

func (p *Pod) container(id string) (*container, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

// first is the container that the others live in; nil when there is none.
func (p *Pod) first() *container {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.containers {
		if c.record().First {
			return c
		}
	}
	return nil
}

// dial connects to a shim, once for all containers that it has.
func (p *Pod) dial(ctx context.Context, at shimclient.Answer, owner string) (*connection, error) {
	share := func() *connection {
		p.mu.Lock()
		defer p.mu.Unlock()
		if known := p.shims[at.Address]; known != nil && !known.gone() {
			known.users++
			return known
		}
		return nil
	}
	if known := share(); known != nil {
		return known, nil
	}
	shim, err := shimclient.Dial(ctx, at, owner)
	if err != nil {
		return nil, err
	}
	if known := share(); known != nil {
		return known, shim.Close() // somebody was faster
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	made := &connection{Shim: shim, users: 1}
	p.shims[at.Address] = made
	return made, nil
}

func (c *connection) gone() bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// release lets go of a shim. The last one who does ends it.
func (p *Pod) release(ctx context.Context, shim *connection, at shimclient.Answer, id string) error {
	p.mu.Lock()
	shim.users--
	last := shim.users == 0
	if last && p.shims[at.Address] == shim {
		delete(p.shims, at.Address)
	}
	p.mu.Unlock()
	if !last {
		return nil
	}
	err := shim.Shutdown(ctx, id)
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, endTimeout)
		defer cancel()
		select {
		case <-shim.Done():
		case <-bounded.Done(): // it is in the pod's cgroup, and ends with that
			p.opts.Log.WarnContext(ctx, "containerd shim without containers has not ended; it ends with its pod", logfields.Container, id, logfields.Path, at.Address)
		}
	}
	return errors.Join(err, shim.Close())
}

// Create announces a container, whose bundle is complete; its start calls the shim. The first one of a pod is what the others
// live in.
func (p *Pod) Create(ctx context.Context, req monitor.CreateRequest) (err error) {
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	if filepath.Base(req.Bundle) != req.ID {
		return fmt.Errorf("create container %s: shims look for it in a bundle of its name, and not in %s: %w", req.ID, req.Bundle, errdefs.ErrInvalidArgument)
	}
	binary, err := p.opts.Binary()
	if err != nil {
		return err
	}
	req.External = true
	if err := p.Client.Create(ctx, req); err != nil {
		return err
	}
	undo.Add("delete from monitor", func(ctx context.Context) error { return p.Client.Delete(ctx, task.ID{Container: req.ID}) })
	// Shims take both for granted, as containerd makes them.
	if err := os.Mkdir(filepath.Join(req.Bundle, "work"), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("bundle: %w", err)
	}
	if err := os.WriteFile(logFile(req.Bundle), nil, 0o600); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	rec := record{
		Binary: binary, Bundle: req.Bundle, CgroupsPath: req.CgroupsPath,
		Terminal: req.Terminal, Stdin: req.Stdin, StdinOnce: req.StdinOnce, First: p.first() == nil,
	}
	if err := bundle.WriteRecord(recordFile(p.dir, req.ID), rec); err != nil {
		return err
	}
	p.add(req.ID, rec)
	undo.Release()
	return nil
}

// Shutdown ends the pod: with force its containers first, the one that the others live in last. A shim that does not answer is
// waited for no longer than shutdownTimeout: Cleanup ends it.
func (p *Pod) Shutdown(ctx context.Context, force bool) error {
	if force {
		bounded, cancel := context.WithTimeout(ctx, shutdownTimeout)
		defer cancel()
		p.mu.Lock()
		all := slices.Collect(maps.Values(p.containers))
		p.mu.Unlock()
		for _, first := range []bool{false, true} {
			errs := make([]error, len(all))
			var group sync.WaitGroup
			for i, c := range all {
				if c.record().First == first {
					group.Go(func() { errs[i] = p.end(bounded, task.ID{Container: c.id}) })
				}
			}
			group.Wait()
			if err := errors.Join(errs...); err != nil {
				return err
			}
		}
	}
	return p.Client.Shutdown(ctx, force)
}

// end kills and deletes a container.
func (p *Pod) end(ctx context.Context, id task.ID) error {
	if err := p.Signal(ctx, id, uint32(unix.SIGKILL), true); err != nil && !errdefs.IsNotFound(err) && !shimclient.Gone(err) {
		return err
	}
	if _, err := p.Wait(ctx, id); err != nil {
		return err
	}
	return p.Delete(ctx, id)
}

// Close lets go of the pod, which lives on. Execs of this client are killed.
func (p *Pod) Close() error {
	p.mu.Lock()
	all := slices.Collect(maps.Values(p.containers))
	p.mu.Unlock()
	for _, c := range all {
		c.closeExecs()
	}
	p.stop()
	p.work.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, shim := range p.shims {
		errs = append(errs, shim.Close())
	}
	return errors.Join(append(errs, p.Client.Close())...)
}

// Checkpoint is refused: what shims would write has no form that they agree on.
func (p *Pod) Checkpoint(context.Context, string, string, string) error {
	return fmt.Errorf("containers that a containerd shim runs are not checkpointed; use a handler of type \"oci\" for them: %w", errdefs.ErrNotImplemented)
}
