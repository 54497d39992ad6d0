package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

var errFault = errors.New("fault")

// world is one pod with its processes, and an image store, in memory. It fails where it is told to.
type world struct {
	mu     sync.Mutex
	faults map[string]error
	procs  map[task.ID]*proc
	uses   map[string]bool
	// volumes are the images that are mounted, used all images that ever were.
	volumes map[string]string
	used    []string
	state   sandbox.State
	// sharedPID: the pod has one PID namespace for its containers.
	sharedPID bool
	// stuck, where it is set, is closed by an update that does not end by itself.
	stuck chan struct{}
	// host: the pod is on the host's kernel.
	host   bool
	gone   bool
	reason string
	ended  chan struct{}
	// stubborn processes ignore everything but SIGKILL, hung ones that too.
	stubborn, hung bool
	// slow: an exec is answered too late.
	slow bool
	// command is what an exec does.
	command func(ctx context.Context, stdio task.Stdio) uint32
	last    task.ExecRequest
	create  task.CreateRequest
	limits  *specs.LinuxResources
}

type proc struct {
	started  bool
	exit     task.Exit
	exited   chan struct{}
	once     sync.Once
	stdio    chan task.Stdio
	attached chan struct{}
}

func newProc() *proc {
	return &proc{exited: make(chan struct{}), stdio: make(chan task.Stdio, 1), attached: make(chan struct{})}
}

func (p *proc) end(exit task.Exit) {
	p.once.Do(func() {
		p.exit = exit
		close(p.exited)
	})
}

func newWorld() *world {
	return &world{faults: map[string]error{}, procs: map[task.ID]*proc{}, uses: map[string]bool{}, volumes: map[string]string{}, state: sandbox.Ready, ended: make(chan struct{})}
}

func (w *world) fail(call string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[call] = err
}

func (w *world) fault(call string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.faults[call]
}

// crash ends the pod and all in it.
func (w *world) crash(reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state, w.reason = sandbox.NotReady, reason
	close(w.ended)
}

func (w *world) proc(id task.ID) (*proc, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if p, ok := w.procs[id]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("process %v: %w", id, errdefs.ErrNotFound)
}

func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := slices.Concat(slices.Collect(maps.Keys(w.uses)), slices.Collect(maps.Keys(w.volumes)))
	for id := range w.procs {
		left = append(left, fmt.Sprint(id))
	}
	return left
}

type fakeSandboxes struct{ *world }

func (s fakeSandboxes) Status(_ context.Context, id string) (sandbox.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return sandbox.Status{}, errdefs.ErrNotFound
	}
	return sandbox.Status{ID: "pod1", State: s.state, Reason: s.reason, VM: !s.host, Config: sandbox.Config{
		Identity: sandbox.Identity{Name: "pod", Namespace: "default", UID: "u"}, Hostname: "pod", Namespaces: sandbox.Namespaces{SharedPID: s.sharedPID},
	}}, nil
}

func (s fakeSandboxes) List(ctx context.Context) []sandbox.Status {
	status, _ := s.Status(ctx, "pod1")
	return []sandbox.Status{status}
}

func (s fakeSandboxes) Tasks(context.Context, string) (task.Service, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil, errdefs.ErrNotFound
	}
	if s.state != sandbox.Ready {
		return nil, fmt.Errorf("pod is %s: %w", s.state, errdefs.ErrFailedPrecondition)
	}
	if s.host {
		return hostTasks{fakeTasks{s.world}}, nil
	}
	return fakeTasks{s.world}, nil
}

func (s fakeSandboxes) Ended(ctx context.Context, _ string) (string, error) {
	select {
	case <-s.ended:
		return s.reason, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

type fakeTasks struct{ *world }

func (f fakeTasks) Create(_ context.Context, req task.CreateRequest) (task.User, error) {
	if err := f.fault("task create"); err != nil {
		return task.User{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.procs[task.ID{Container: req.ID}] = newProc()
	f.create = req
	return task.User{UID: 7, GID: 8}, nil
}

func (f fakeTasks) Exec(ctx context.Context, req task.ExecRequest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.procs[req.ID] = newProc()
	f.last = req
	if f.slow {
		<-ctx.Done() // the process is made all the same
		return ctx.Err()
	}
	return nil
}

func (f fakeTasks) Start(_ context.Context, id task.ID) (uint32, error) {
	if err := f.fault("task start"); err != nil {
		return 0, err
	}
	p, err := f.proc(id)
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	again := p.started
	p.started = true
	f.mu.Unlock()
	if again {
		return 0, fmt.Errorf("started before: %w", errdefs.ErrFailedPrecondition)
	}
	if id.Exec != "" {
		stdio := <-p.stdio
		ctx, cancel := context.WithCancel(context.Background())
		go func() { <-p.exited; cancel() }()
		go func() {
			code := f.command(ctx, stdio)
			p.end(task.Exit{Code: code, At: time.Now()})
			close(p.attached)
		}()
	}
	return 42, nil
}

func (f fakeTasks) Signal(ctx context.Context, id task.ID, signal uint32, all bool) error {
	if f.hung {
		<-ctx.Done()
		return ctx.Err()
	}
	p, err := f.proc(id)
	if err != nil {
		return err
	}
	if signal == uint32(kill) || !f.stubborn {
		p.end(task.Exit{Code: 128 + signal, At: time.Now()})
	}
	return nil
}

func (f fakeTasks) Wait(ctx context.Context, id task.ID) (task.Exit, error) {
	if err := f.fault("task wait"); err != nil {
		return task.Exit{}, err
	}
	p, err := f.proc(id)
	if err != nil {
		return task.Exit{}, err
	}
	select {
	case <-p.exited:
		return p.exit, nil
	case <-f.ended:
		return task.Exit{}, fmt.Errorf("connection lost: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		return task.Exit{}, ctx.Err()
	}
}

func (f fakeTasks) Delete(_ context.Context, id task.ID) error {
	if err := f.fault("task delete"); err != nil {
		return err
	}
	p, err := f.proc(id)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-p.exited:
	default:
		if p.started {
			return fmt.Errorf("it runs: %w", errdefs.ErrFailedPrecondition)
		}
	}
	delete(f.procs, id)
	return nil
}

func (f fakeTasks) Attach(ctx context.Context, id task.ID, stdio task.Stdio) error {
	p, err := f.proc(id)
	if err != nil {
		return err
	}
	if id.Exec != "" {
		p.stdio <- stdio
	} else if stdio.Stdout != nil {
		if _, err := io.WriteString(stdio.Stdout, "attached"); err != nil {
			return err
		}
	}
	done := p.attached
	if id.Exec == "" {
		done = p.exited
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Update in a guest that does not follow tells so, and waits for the caller to give up.
func (f fakeTasks) Update(ctx context.Context, _ string, r *specs.LinuxResources) error {
	if f.stuck != nil {
		close(f.stuck)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.limits = r
	return f.faults["task update"]
}

type fakeImages struct{ *world }

func (i fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	if ref == "data" {
		return image.Image{ID: "sha256:5678"}, i.fault("volume get")
	}
	if ref != "app" {
		return image.Image{}, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	img := image.Image{ID: "sha256:1234"}
	img.Config.Config = ocispec.ImageConfig{Entrypoint: []string{"/app"}, StopSignal: "SIGQUIT", User: "www"}
	return img, i.fault("image get")
}

func (i fakeImages) Use(_ context.Context, owner string, img image.Image) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.used = append(i.used, img.ID.String())
	i.uses[owner] = true // also when it fails: half a lease
	return i.faults["image use"]
}

func (i fakeImages) Unuse(_ context.Context, owner string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.faults["image unuse"]; err != nil {
		return err
	}
	delete(i.uses, owner)
	return nil
}

func (i fakeImages) Allowed(_ context.Context, ref string, _ image.Image) error {
	return i.fault("allow " + ref)
}

func (i fakeImages) Owners(context.Context) ([]string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Collect(maps.Keys(i.uses)), nil
}

func (i fakeImages) Ensure(context.Context, image.Image) ([]string, error) {
	return []string{"/layers/1"}, i.fault("layers")
}

type fakeVolumes struct{ *world }

func (v fakeVolumes) Mount(_ context.Context, id string, layers []string, sub, userns string) (string, error) {
	if err := v.fault("volume mount"); err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.volumes[id] = fmt.Sprint(layers, sub, userns)
	return filepath.Join("/volumes", id, sub), nil
}

func (v fakeVolumes) Remove(_ context.Context, id string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.volumes, id)
	return nil
}

func (v fakeVolumes) Sweep(_ context.Context, keep func(string) bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.volumes, func(id, _ string) bool { return !keep(id) })
	return nil
}

// newManager starts a daemon in the world; dir is its state, which survives it.
func newManager(t *testing.T, w *world, dir string) *Manager {
	t.Helper()
	m, err := New(Options{
		Dir: filepath.Join(dir, "records"), BundleDir: filepath.Join(dir, "bundles"), Sandboxes: fakeSandboxes{w},
		Images: fakeImages{w}, Disks: fakeImages{w}, Dirs: fakeImages{w}, Volumes: fakeVolumes{w}, Events: event.NewBroker(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func config(name string) Config { return Config{SandboxID: "pod1", Name: name, Image: "app"} }

func mustCreate(t *testing.T, m *Manager) string {
	t.Helper()
	id, err := m.Create(t.Context(), config("a"))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustStart(t *testing.T, m *Manager) string {
	t.Helper()
	id := mustCreate(t, m)
	if err := m.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

// awaitExit returns the status once the container is Exited.
func awaitExit(t *testing.T, m *Manager, id string) Status {
	t.Helper()
	c, err := m.find(id)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.exited:
	case <-t.Context().Done():
		t.Fatal("no exit")
	}
	return c.snapshot().status()
}

func assertNothing(t *testing.T, w *world, dir string) {
	t.Helper()
	if left := w.left(); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	for _, sub := range []string{"records", "bundles"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("left over in %s: %s", sub, e.Name())
		}
	}
}
