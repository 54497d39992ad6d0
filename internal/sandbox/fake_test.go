package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/network"
	"github.com/pistis-run/pistis/internal/task"
)

var errFault = errors.New("fault")

// world is a host in memory: it knows what exists and fails where it is told to.
type world struct {
	mu        sync.Mutex
	have      map[string]bool // "netns x", "network x", "instance x", "files x", "containers x"
	faults    map[string]error
	instances map[string]*fakeInstance
	calls     []string
	// host: its pods are on the host's kernel, and not VMs.
	host bool
	// gate holds the network's set-up back until it is closed.
	gate chan struct{}
	// watched are closed at the first such call.
	watched map[string]chan struct{}
	// stuck, where it is set, is closed by a resize that does not end by itself.
	stuck chan struct{}
}

func newWorld() *world {
	return &world{have: map[string]bool{}, faults: map[string]error{}, instances: map[string]*fakeInstance{}, watched: map[string]chan struct{}{}}
}

// do notes the call, fails as told, and otherwise changes what exists.
func (w *world) do(call string, change func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.calls = append(w.calls, call)
	if c := w.watched[call]; c != nil {
		close(c)
		delete(w.watched, call)
	}
	if err := w.faults[call]; err != nil {
		return err
	}
	change()
	return nil
}

func (w *world) fail(call string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults[call] = err
}

// watch returns a channel that is closed at the next such call.
func (w *world) watch(call string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := make(chan struct{})
	w.watched[call] = c
	return c
}

func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.have))
}

func (w *world) netNS() NetNS {
	return NetNS{
		Create: func(dir, id string) (string, error) {
			path := filepath.Join(dir, id)
			return path, w.do("netns create", func() { w.have["netns "+id] = true })
		},
		Remove: func(path string) error {
			return w.do("netns remove", func() { delete(w.have, "netns "+filepath.Base(path)) })
		},
		List: func(string) (ids []string, err error) {
			for _, thing := range w.left() {
				var id string
				if n, _ := fmt.Sscanf(thing, "netns %s", &id); n == 1 {
					ids = append(ids, id)
				}
			}
			return ids, nil
		},
	}
}

type fakeNetwork struct{ *world }

func (n fakeNetwork) Setup(ctx context.Context, pod network.Pod) (network.Result, error) {
	if n.gate != nil {
		select {
		case <-n.gate:
		case <-ctx.Done():
			return network.Result{}, ctx.Err()
		}
	}
	err := n.do("network setup", func() { n.have["network "+pod.ID] = true })
	return network.Result{IPs: []netip.Addr{netip.MustParseAddr("10.0.0.2")}, DNSServers: []string{"10.0.0.1"}}, err
}

func (n fakeNetwork) Teardown(_ context.Context, pod network.Pod) error {
	return n.do("network teardown", func() { delete(n.have, "network "+pod.ID) })
}

func (n fakeNetwork) Reconcile(_ context.Context, keep map[string]bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sweep("network", keep)
	return nil
}

// sweep removes things of one kind that are of nobody's.
func (w *world) sweep(kind string, keep map[string]bool) {
	maps.DeleteFunc(w.have, func(thing string, _ bool) bool {
		what, id, _ := strings.Cut(thing, " ")
		return what == kind && !keep[id]
	})
}

type fakeLauncher struct{ *world }

func (l fakeLauncher) VM() bool { return !l.host }

func (fakeLauncher) Validate(cfg Config) error {
	if cfg.HostPID {
		return fmt.Errorf("no host pid: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

func (l fakeLauncher) Launch(ctx context.Context, req LaunchRequest) (Instance, error) {
	err := l.do("launch files", func() { l.have["files "+req.ID] = true })
	if err == nil {
		err = req.Save(json.RawMessage(`{"files":true}`))
	}
	if err == nil {
		_, err = req.Connected(ctx)
	}
	if err != nil {
		return nil, err
	}
	i := &fakeInstance{world: l.world, id: req.ID, done: make(chan struct{})}
	err = l.do("launch", func() {
		l.have["instance "+req.ID] = true
		l.instances[req.ID] = i
	})
	if err != nil {
		return nil, err
	}
	return i, nil
}

func (l fakeLauncher) Reconnect(_ context.Context, req LaunchRequest) (Instance, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.have["instance "+req.ID] {
		return nil, fmt.Errorf("no such instance: %w", errdefs.ErrNotFound)
	}
	return l.instances[req.ID], nil
}

func (l fakeLauncher) Cleanup(_ context.Context, req LaunchRequest) error {
	return l.do("cleanup", func() {
		delete(l.have, "instance "+req.ID)
		if req.State != nil {
			delete(l.have, "files "+req.ID)
		}
	})
}

func (l fakeLauncher) Sweep(_ context.Context, keep map[string]bool) error {
	return l.do("sweep", func() {
		l.sweep("files", keep)
		l.sweep("instance", keep)
	})
}

type fakeInstance struct {
	*world
	id     string
	once   sync.Once
	reason string
	done   chan struct{}
}

func (i *fakeInstance) Tasks() task.Service { return nil }

func (i *fakeInstance) Wait(ctx context.Context) (string, error) {
	select {
	case <-i.done:
		return i.reason, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (i *fakeInstance) end(reason string) {
	i.once.Do(func() {
		i.reason = reason
		close(i.done)
	})
}

func (i *fakeInstance) Stop(context.Context) error {
	return i.do("instance stop", func() {
		delete(i.have, "instance "+i.id)
		i.end("stopped")
	})
}

// Resize of a guest that does not follow tells so, and waits for the caller to give up.
func (i *fakeInstance) Resize(ctx context.Context, cfg Config) error {
	if i.stuck != nil {
		close(i.stuck)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return i.do("resize", func() {
		i.have["size of "+i.id+" "+fmt.Sprint(cfg.Resources.MemoryLimit+cfg.Overhead.MemoryLimit)] = true
	})
}

func (i *fakeInstance) Info() map[string]string { return map[string]string{"hypervisor": "fake"} }
func (i *fakeInstance) Close() error            { return nil }

type fakeContainers struct{ *world }

func (c fakeContainers) StopAll(context.Context, string) error {
	return c.do("containers stop", func() {})
}

func (c fakeContainers) RemoveAll(_ context.Context, id string) error {
	return c.do("containers remove", func() { delete(c.have, "containers "+id) })
}

// newManager starts a daemon in the world; dir is its state, which survives it.
func newManager(t *testing.T, w *world, dir string) *Manager {
	t.Helper()
	m, err := New(Options{
		Dir: dir, NetNSDir: filepath.Join(dir, "netns"), NetNS: w.netNS(), Network: fakeNetwork{w},
		Launchers: map[string]Launcher{"vm": fakeLauncher{w}},
		Events:    event.NewBroker(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.SetContainers(fakeContainers{w})
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func podConfig(name string) Config {
	return Config{Identity: Identity{Name: name, Namespace: "default", UID: "uid"}, Handler: "vm"}
}

// assertNothing fails when the world or the state directory still has something.
func assertNothing(t *testing.T, w *world, dir string) {
	t.Helper()
	if left := w.left(); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left over: record %s", e.Name())
	}
}
