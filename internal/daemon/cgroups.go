package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/store"
	"github.com/pistis-run/pistis/internal/systemd"
)

// cgroupTimeout is how long dead processes may take to leave their cgroup.
const cgroupTimeout = 10 * time.Second

// groups is who makes the pods' cgroups, and where those are of pods for which the client names none.
type groups struct {
	// units is nil where groups are made without systemd.
	units units
	// parent is a path, or the name of a slice.
	parent string
}

// units is the host's systemd.
type units interface {
	StartScope(ctx context.Context, name, slice string, pid int) error
	Stop(ctx context.Context, name string) error
}

// newGroups chooses the driver: the configured one, else systemd where that is the init system.
func newGroups(cfg config.Config) (groups, error) {
	driver := cfg.CgroupDriver
	if driver == "" {
		driver = config.CgroupFS
		if systemd.Booted() {
			driver = config.CgroupSystemd
		}
	}
	if driver == config.CgroupFS {
		return groups{parent: cfg.CgroupParent}, nil
	}
	if !systemd.Booted() {
		return groups{}, fmt.Errorf("daemon: cgroup_driver = %q: systemd is not this host's init system; make it %q: %w",
			driver, config.CgroupFS, errdefs.ErrFailedPrecondition)
	}
	if err := cgroup.CheckSlice(cfg.CgroupParent); err != nil {
		return groups{}, fmt.Errorf("daemon: cgroup_parent, with the systemd driver: %w", err)
	}
	return groups{units: systemd.Manager{}, parent: cgroup.SliceName(cfg.CgroupParent)}, nil
}

func (g groups) systemd() bool { return g.units != nil }

func (g groups) driver() string {
	if g.systemd() {
		return config.CgroupSystemd
	}
	return config.CgroupFS
}

// driverFile keeps the driver that pods were made with, where it goes with them when the machine restarts.
const driverFile = "cgroup-driver"

// settle refuses to be another driver than the one that pods have cgroups of, which would not be found and not be removed.
// pods are those that have anything on this host.
func (g groups) settle(state string, pods []string) error {
	file := filepath.Join(state, driverFile)
	before, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("daemon: cgroup driver: %w", err)
	}
	if string(before) == g.driver() {
		return nil
	}
	if err == nil && len(pods) > 0 { // an older daemon has written none
		return fmt.Errorf("daemon: the cgroup driver is %s, and there are pods that were made with %s, %s: set cgroup_driver = %q, and stop and remove all pods before it is changed: %w",
			g.driver(), before, few(pods), before, errdefs.ErrFailedPrecondition)
	}
	return store.WriteFile(file, []byte(g.driver()))
}

// few names the first of them.
func few(ids []string) string {
	const most = 5
	var names []string
	for _, id := range ids[:min(len(ids), most)] {
		names = append(names, id[:min(len(id), 13)])
	}
	if more := len(ids) - most; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}

// podsOf lists all pods that have anything on this host: a directory each, those on the host's kernel below that of their handler, which
// may not be configured any more.
func podsOf(p paths) ([]string, error) {
	dirs := []string{p.pods()}
	handlers, err := os.ReadDir(p.hostPods())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, handler := range handlers {
		dirs = append(dirs, filepath.Join(p.hostPods(), handler.Name()))
	}
	var pods []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, entry := range entries {
			pods = append(pods, entry.Name())
		}
	}
	return pods, nil
}

// remove removes the parent of the pods' cgroups, from all hierarchies: runtimes make groups on more of them than VMs
// need. EBUSY where somebody else has something in it.
func (g groups) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cgroupTimeout)
	defer cancel()
	group, err := cgroup.OfSpec("/" + cgroup.Path(g.parent, ""))
	if err != nil {
		return err
	}
	if err := group.Remove(ctx); err != nil || !g.systemd() {
		return err
	}
	// It is empty, so that nothing is ended with it.
	return g.units.Stop(ctx, g.parent)
}
