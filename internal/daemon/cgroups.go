package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
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
// dirs have an entry for each pod.
func (g groups) settle(state string, dirs ...string) error {
	file := filepath.Join(state, driverFile)
	before, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("daemon: cgroup driver: %w", err)
	}
	if string(before) == g.driver() {
		return nil
	}
	if err == nil { // an older daemon has written none
		for _, dir := range dirs {
			pods, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("daemon: cgroup driver: %w", err)
			}
			if len(pods) > 0 {
				return fmt.Errorf("daemon: the cgroup driver is %s, and there are pods that were made with %s: set cgroup_driver = %q, and stop and remove all pods before it is changed: %w",
					g.driver(), before, before, errdefs.ErrFailedPrecondition)
			}
		}
	}
	return store.WriteFile(file, []byte(g.driver()))
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
