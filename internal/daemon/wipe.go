package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/telemetry"
	"github.com/pistis-run/pistis/internal/version"
)

// Wipe ends all pods of a daemon that does not run, and removes what they and the daemon had on the host: namespaces,
// cgroups, bridge, rules and everything below the run directory. Images and the guest stay.
func Wipe(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	return locked(cfg, func() error { return wipe(ctx, cfg, log) })
}

// WipeAll is Wipe, and removes everything below the root directory but the guest.
func WipeAll(ctx context.Context, cfg config.Config, log *slog.Logger) error {
	return locked(cfg, func() error {
		if err := wipe(ctx, cfg, log); err != nil {
			return err
		}
		return wipeRoot(paths{root: cfg.Root}, log)
	})
}

// locked runs fn while no daemon can.
func locked(cfg config.Config, fn func() error) error {
	locks, err := lockDirs(cfg.Root, cfg.State)
	if err != nil {
		return err
	}
	return errors.Join(fn(), locks.Close())
}

// wipeRoot removes what a daemon keeps. Nothing may be mounted below it any more: that would be somebody else's.
func wipeRoot(p paths, log *slog.Logger) error {
	real, err := filepath.EvalSymlinks(p.root) // as the kernel calls it
	if err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, real+"/"), false
	})
	if err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("wipe: %s is mounted below %s: unmount it: %w", mounts[0].Mountpoint, p.root, errdefs.ErrFailedPrecondition)
	}
	entries, err := os.ReadDir(p.root)
	if err != nil {
		return fmt.Errorf("wipe: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(p.root, entry.Name())
		if path == p.guest() || entry.Name() == lockFile {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("wipe: %w", err)
		}
	}
	log.Info("wiped", logfields.Path, p.root)
	return nil
}

func wipe(ctx context.Context, cfg config.Config, log *slog.Logger) (err error) {
	var down cleanup.Stack
	defer func() { err = errors.Join(err, down.Run(ctx)) }()
	engine, err := openEngine(ctx, cfg, telemetry.NewMetrics(version.Version), log, &down)
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
	if err := engine.handlers.groups.remove(ctx); errors.Is(err, unix.EBUSY) {
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
