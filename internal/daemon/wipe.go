package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network/netns"
)

// cgroupTimeout is how long dead processes may take to leave their cgroup.
const cgroupTimeout = 10 * time.Second

// Wipe ends all pods of a daemon that does not run, and removes what they and the daemon had on the host: namespaces,
// cgroups, bridge, rules and everything below the run directory. Images and the guest stay.
func Wipe(ctx context.Context, cfg config.Config, log *slog.Logger) (err error) {
	var down cleanup.Stack
	defer func() { err = errors.Join(err, down.Run(ctx)) }()
	locked, err := lockDirs(cfg.Root, cfg.State)
	if err != nil {
		return err
	}
	down.Add("unlock", closing(locked.Close))
	engine, err := openEngine(ctx, cfg, log, &down)
	if err != nil {
		return err
	}
	if err := engine.recover(ctx, log); err != nil {
		return err
	}
	if err := engine.removePods(ctx); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	if err := engine.network.Wipe(ctx); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	// What follows was empty before, or Recover would have said what could not be removed.
	for _, dir := range engine.paths.ofState() {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	for _, dir := range engine.paths.pins() {
		if err := netns.RemoveDir(dir); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	if err := removeCgroup(ctx, cfg.CgroupParent); errors.Is(err, unix.EBUSY) {
		log.Warn("the cgroup stays: there are processes or groups in it that are not of this daemon's pods", logfields.Path, cfg.CgroupParent)
	} else if err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	if err := removeStale(cfg.Socket); err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	log.Info("wiped", logfields.Path, cfg.State)
	return nil
}

// removeCgroup removes the parent of the pods' cgroups. EBUSY where somebody else has something in it.
func removeCgroup(ctx context.Context, path string) error {
	group, err := cgroup.Open(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cgroupTimeout)
	defer cancel()
	return group.Remove(ctx)
}
