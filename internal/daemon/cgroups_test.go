package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/systemd"
)

func TestNewGroups(t *testing.T) {
	g, err := newGroups(config.Config{Cgroups: config.Cgroups{CgroupDriver: "cgroupfs", CgroupParent: "node/pods"}})
	if err != nil || g.systemd() || g.parent != "node/pods" {
		t.Errorf("cgroupfs: %+v, %v", g, err)
	}
	g, err = newGroups(config.Config{Cgroups: config.Cgroups{CgroupParent: "pistis"}})
	if err != nil || g.systemd() != systemd.Booted() {
		t.Errorf("chosen: %+v, %v", g, err)
	}
	g, err = newGroups(config.Config{Cgroups: config.Cgroups{CgroupDriver: "systemd", CgroupParent: "node-pods"}})
	if !systemd.Booted() {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("systemd where it is not the init system: %v", err)
		}
		return
	}
	if err != nil || !g.systemd() || g.parent != "node-pods.slice" {
		t.Errorf("systemd: %+v, %v", g, err)
	}
	_, err = newGroups(config.Config{Cgroups: config.Cgroups{CgroupDriver: "systemd", CgroupParent: "node/pods"}})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path for systemd: %v", err)
	}
}

// stopped is a unit that was stopped.
type stopped string

func (*stopped) StartScope(context.Context, string, string, int) error { return nil }

func (s *stopped) Stop(_ context.Context, name string) error {
	*s = stopped(name)
	return nil
}

// TestRemoveGroups: the slice of our pods, which is not there on any hierarchy, is stopped too.
func TestRemoveGroups(t *testing.T) {
	var s stopped
	if err := (groups{units: &s, parent: "pististest-none.slice"}).remove(t.Context()); err != nil || s != "pististest-none.slice" {
		t.Errorf("stopped %q, %v", s, err)
	}
	if err := (groups{parent: "pististest/none"}).remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDriverStaysWithItsPods: their cgroups are where the driver that made them has put them.
func TestDriverStaysWithItsPods(t *testing.T) {
	state := t.TempDir()
	p := paths{state: state}
	cgroupfs, withSystemd := groups{}, groups{units: new(stopped)}
	for _, step := range []struct {
		name   string
		groups groups
		pods   bool
		want   bool
	}{
		{"the first", cgroupfs, false, true}, {"the same", cgroupfs, true, true}, {"another, with pods", withSystemd, true, false},
		{"still the first", cgroupfs, true, true}, {"another, without pods", withSystemd, false, true}, {"back, with pods", cgroupfs, true, false},
	} {
		if err := errors.Join(os.RemoveAll(p.pods()), os.RemoveAll(p.hostPods())); err != nil {
			t.Fatal(err)
		}
		if step.pods {
			if err := errors.Join(os.MkdirAll(filepath.Join(p.pods(), "a"), 0o755), os.MkdirAll(filepath.Join(p.hostPods(), "runc", "b"), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		pods, err := podsOf(p)
		if err != nil {
			t.Fatal(err)
		}
		err = step.groups.settle(state, pods)
		if step.want && err != nil || !step.want && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "a, b")) {
			t.Errorf("%s: %v", step.name, err)
		}
	}
}

func TestFew(t *testing.T) {
	for want, ids := range map[string][]string{
		"": nil, "a, b": {"a", "b"}, "1, 2, 3, 4, 0123456789abc, and 2 more": {"1", "2", "3", "4", "0123456789abcdef", "6", "7"},
	} {
		if got := few(ids); got != want {
			t.Errorf("%q: %q", ids, got)
		}
	}
}
