package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// fakeNode has one container, "there".
type fakeNode struct {
	limits map[string]*specs.LinuxResources
}

type fakePods struct{}

func (fakePods) List(context.Context) []sandbox.Status { return nil }

func (fakeNode) List(context.Context) []container.Status { return nil }

func (fakeNode) Spec(string) (*specs.Spec, error) { return &specs.Spec{}, nil }

func (n fakeNode) SetLimits(_ context.Context, id string, r *specs.LinuxResources) error {
	switch id {
	case "there":
		n.limits[id] = r
		return nil
	case "broken":
		return errdefs.ErrUnavailable
	}
	return fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
}

func newPlugins(t *testing.T) *Plugins {
	t.Helper()
	p, _ := newPluginsAt(t)
	return p
}

func newPluginsAt(t *testing.T) (p *Plugins, socket string) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "nri.sock")
	p, err := New(Options{
		Socket: socket, PluginDir: filepath.Join(dir, "plugins"), ConfigDir: filepath.Join(dir, "conf"),
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p, socket
}

// TestContainersEndBeforeTheStart: one that an earlier daemon has left may end at any moment.
func TestContainersEndBeforeTheStart(t *testing.T) {
	p := newPlugins(t)
	began := make(chan struct{})
	var ending sync.WaitGroup
	ending.Go(func() {
		for i := range 100 {
			if err := p.Tell(context.Background(), container.MomentStopped, sandbox.Status{}, container.Status{ID: "there"}); err != nil {
				t.Error(err)
			}
			if i == 0 {
				close(began)
			}
		}
	})
	<-began
	if err := p.Start(fakePods{}, fakeNode{}); err != nil {
		t.Error(err)
	}
	ending.Wait()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestUpdates: what a plugin wants of a container that has gone meanwhile is no failure of the call that it answers.
func TestUpdates(t *testing.T) {
	p, n := newPlugins(t), fakeNode{map[string]*specs.LinuxResources{}}
	p.node.Store(&node{fakePods{}, n})
	update := func(id string, optional bool) *api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(id)
		u.SetLinuxCPUShares(300)
		if optional {
			u.SetIgnoreFailure()
		}
		return u
	}
	failed, err := p.apply(t.Context(), []*api.ContainerUpdate{update("gone", false), update("broken", true), update("there", false)})
	if err != nil || len(failed) != 2 || n.limits["there"] == nil {
		t.Errorf("%v failed, %v, set: %v", failed, err, n.limits)
	}
	if failed, err := p.apply(t.Context(), []*api.ContainerUpdate{update("broken", false)}); !errdefs.IsUnavailable(err) || len(failed) != 1 {
		t.Errorf("%v failed, %v", failed, err)
	}
}

// slowPods take their time to be listed, but for the first time: that is for the plugins that are started.
type slowPods struct {
	lists       atomic.Int32
	asked, list chan struct{}
}

func (p *slowPods) List(context.Context) []sandbox.Status {
	if p.lists.Add(1) == 2 {
		close(p.asked)
		<-p.list
	}
	return nil
}

// TestHoldEndsWithTheContext: a plugin that is being let in, which takes long, holds no call longer than its client waits.
func TestHoldEndsWithTheContext(t *testing.T) {
	p, socket := newPluginsAt(t)
	pods := &slowPods{asked: make(chan struct{}), list: make(chan struct{})}
	p.node.Store(&node{pods, fakeNode{}})
	if err := p.nri.Start(); err != nil {
		t.Fatal(err)
	}
	s, err := stub.New(noEvents{}, stub.WithPluginName("slow"), stub.WithPluginIdx("10"), stub.WithSocketPath(socket))
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- s.Start(context.WithoutCancel(t.Context())) }()
	<-pods.asked
	ctx, cancel := context.WithCancel(t.Context())
	var held sync.WaitGroup
	held.Go(func() {
		if _, err := p.Hold(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("while a plugin is let in: %v", err)
		}
	})
	cancel()
	held.Wait()
	close(pods.list)
	if err := <-started; err != nil {
		t.Error(err)
	}
	release, err := p.Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release()
	s.Stop()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// noEvents is a plugin that listens to one event and does nothing.
type noEvents struct{}

func (noEvents) RunPodSandbox(context.Context, *api.PodSandbox) error { return nil }
