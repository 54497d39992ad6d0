package nri

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
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
	dir := t.TempDir()
	p, err := New(Options{
		Socket: filepath.Join(dir, "nri.sock"), PluginDir: filepath.Join(dir, "plugins"), ConfigDir: filepath.Join(dir, "conf"),
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
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
