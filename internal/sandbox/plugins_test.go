package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// lookingPlugins look at what others see while they are asked.
type lookingPlugins struct {
	noPlugins
	m      *Manager
	listed int
	ready  bool
}

func (p *lookingPlugins) TellPod(ctx context.Context, moment Moment, pod Status) error {
	if moment == Started {
		p.listed, p.ready = len(p.m.List(ctx)), pod.State == Ready && len(pod.IPs) > 0
		if _, err := p.m.Status(ctx, pod.ID); !errdefs.IsNotFound(err) {
			return errors.New("the pod has a status")
		}
	}
	return nil
}

// TestNobodySeesAPodBeforePlugins have agreed to it.
func TestNobodySeesAPodBeforePlugins(t *testing.T) {
	w := newWorld()
	m := newManager(t, w, t.TempDir())
	p := &lookingPlugins{m: m}
	m.plugins = p
	if _, err := m.Run(t.Context(), podConfig("a")); err != nil {
		t.Fatal(err)
	}
	if p.listed != 0 || !p.ready {
		t.Errorf("when the plugin was asked %d pods were listed; it was shown a ready one: %t", p.listed, p.ready)
	}
	if n := len(m.List(t.Context())); n != 1 {
		t.Errorf("%d pods are listed", n)
	}
}

// TestPluginsAndResources: plugins are asked before a pod's resources change, and told after it.
func TestPluginsAndResources(t *testing.T) {
	w := newWorld()
	m := newManager(t, w, t.TempDir())
	m.plugins = worldPlugins{world: w}
	id, err := m.Run(t.Context(), podConfig("a"))
	if err != nil {
		t.Fatal(err)
	}
	told := func() (told []string) {
		for _, call := range w.calls {
			if moment, ok := strings.CutPrefix(call, "plugins "); ok {
				told = append(told, moment)
			}
		}
		return told
	}
	if err := m.UpdateResources(t.Context(), id, nil, &Resources{MemoryLimit: 10}); err != nil {
		t.Error(err)
	}
	w.fail("plugins update", errFault)
	if err := m.UpdateResources(t.Context(), id, nil, &Resources{MemoryLimit: 20}); !errors.Is(err, errFault) {
		t.Errorf("what a plugin refused: %v", err)
	}
	if status, err := m.Status(t.Context(), id); err != nil || status.Config.Resources.MemoryLimit != 10 {
		t.Errorf("got %+v, %v", status.Config.Resources, err)
	}
	if got, want := told(), []string{"started", "update", "updated", "update"}; !slices.Equal(got, want) {
		t.Errorf("told %v, want %v", got, want)
	}
}

// busyPlugins never let anybody hold them.
type busyPlugins struct{ noPlugins }

func (busyPlugins) Hold(ctx context.Context) (func(), error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestWaitingForPluginsEndsWithTheContext and leaves nothing, not even the name.
func TestWaitingForPluginsEndsWithTheContext(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	m.plugins = busyPlugins{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Run(ctx, podConfig("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	assertNothing(t, w, dir)
	m.plugins = noPlugins{}
	if _, err := m.Run(t.Context(), podConfig("a")); err != nil {
		t.Error(err)
	}
}
