package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

// Recover reads the records, once, after the sandboxes were recovered and before any other call. Running containers are
// watched again, so that exits of the meantime are reported; what was half made, half removed or has lost its sandbox is
// removed. An error of one container is logged; the error returned means that the records cannot be read.
func (m *Manager) Recover(ctx context.Context) error {
	records, corrupt, err := m.records.Load()
	if err != nil {
		return fmt.Errorf("recover containers: %w", err)
	}
	for _, c := range corrupt {
		fate := "what it described is removed"
		if _, older := records[c.ID]; older {
			fate = "an older one counts"
		}
		m.log.ErrorContext(ctx, "container record cannot be read and was moved aside; "+fate, logfields.Container, c.ID, logfields.Path, c.Path, logfields.Error, c.Err)
		if err := m.deleteAnywhere(ctx, c.ID); err != nil {
			m.log.ErrorContext(ctx, "its processes could not be ended; they end with their pod", logfields.Container, c.ID, logfields.Error, err)
		}
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, 8)
	for id, rec := range records {
		c := newContainer(rec)
		m.add(c)
		if err := m.names.Reserve(rec.Name, id); err != nil {
			m.log.ErrorContext(ctx, "two containers have one name", logfields.Container, id, logfields.Error, err)
		}
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := m.recoverOne(ctx, c); err != nil {
				m.log.ErrorContext(ctx, "container could not be recovered", logfields.Container, id, logfields.Error, err)
			}
		})
	}
	group.Wait()
	if err := m.sweep(ctx, records); err != nil {
		m.log.ErrorContext(ctx, "left-overs without a container could not be removed", logfields.Error, err)
	}
	return nil
}

func (m *Manager) recoverOne(ctx context.Context, c *container) error {
	release, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	rec := c.snapshot()
	pod, err := m.sandboxes.Status(ctx, rec.Config.SandboxID)
	lost := errdefs.IsNotFound(err)
	if err != nil && !lost {
		return err
	}
	if lost || rec.State == Creating || rec.State == Removing {
		if err := m.release(ctx, rec); err != nil {
			return err
		}
		if err := m.forget(c); err != nil {
			return err
		}
		if rec.State != Creating { // of that one nobody was told
			m.publish(event.Deleted, rec)
		}
		return nil
	}
	switch rec.State {
	case Created:
		if pod.State != sandbox.Ready {
			m.finish(c, task.Exit{Code: 255, At: time.Now(), Reason: because(pod)})
		}
	case Starting:
		return m.recoverStarting(ctx, c)
	case Running, Unknown:
		m.watch(c)
	}
	return nil
}

func because(pod sandbox.Status) string {
	if pod.Reason == "" {
		return "its pod was stopped"
	}
	return pod.Reason
}

// recoverStarting finishes a start that the daemon's end interrupted: the process runs, has ended, or was never started.
func (m *Manager) recoverStarting(ctx context.Context, c *container) error {
	rec := c.snapshot()
	tasks, err := m.sandboxes.Tasks(ctx, rec.Config.SandboxID)
	if err == nil {
		_, err = tasks.Start(ctx, task.ID{Container: rec.ID})
	}
	// A failed precondition of Start itself means that it was started before.
	if tasks != nil && errdefs.IsFailedPrecondition(err) {
		err = nil
	}
	if err != nil {
		return m.startFailed(ctx, c, tasks, err)
	}
	if err := m.move(c, opStarted, func(r *record) { r.Started = time.Now() }); err != nil {
		return err
	}
	m.publish(event.Started, rec)
	m.watch(c)
	return nil
}

// deleteAnywhere ends a container of which only the id is known.
func (m *Manager) deleteAnywhere(ctx context.Context, id string) error {
	var errs []error
	for _, pod := range m.sandboxes.List(ctx) {
		tasks, err := m.sandboxes.Tasks(ctx, pod.ID)
		if err != nil {
			continue // it does not run, and nothing in it
		}
		if err := signal(ctx, tasks, id, kill, true); err != nil {
			errs = append(errs, err)
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, killTimeout)
		if _, err := tasks.Wait(bounded, task.ID{Container: id}); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
		if err := tasks.Delete(bounded, task.ID{Container: id}); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
		cancel()
	}
	return errors.Join(errs...)
}

// sweep removes bundles, volumes and uses of images of containers without a record.
func (m *Manager) sweep(ctx context.Context, records map[string]record) error {
	var errs []error
	entries, err := os.ReadDir(m.bundles)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("bundles: %w", err))
	}
	for _, entry := range entries {
		if _, known := records[entry.Name()]; !known {
			errs = append(errs, os.RemoveAll(m.bundle(entry.Name())))
		}
	}
	errs = append(errs, m.volumes.Sweep(ctx, func(id string) bool {
		_, known := records[ownerOfVolume(id)]
		return known
	}))
	owners, err := m.images.Owners(ctx)
	errs = append(errs, err)
	for _, owner := range owners {
		if _, known := records[owner]; !known {
			errs = append(errs, m.images.Unuse(ctx, owner))
		}
	}
	return errors.Join(errs...)
}
