package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	kill = unix.SIGKILL
	// signalTimeout bounds one call into a sandbox that may hang.
	signalTimeout = 10 * time.Second
	// killTimeout is how long a killed container may take to end and to have its output drained.
	killTimeout = 30 * time.Second
	// deleteTimeout bounds the removal of a container in its sandbox.
	deleteTimeout = 60 * time.Second
)

// Stop sends the container's stop signal, and SIGKILL to all its processes after the grace period; at once when that is
// zero. It returns when the container is Exited. It is idempotent and succeeds for an id that is not known and for a
// container that does not run. DeadlineExceeded says that the sandbox does not answer.
func (m *Manager) Stop(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.find(id)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	// A start that is under way comes first; a change of its limits does not.
	release, err := c.acquireToEnd(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	release()
	return m.stop(ctx, c, grace)
}

func (m *Manager) stop(ctx context.Context, c *container, grace time.Duration) (err error) {
	rec := c.snapshot()
	if !rec.alive() {
		return nil
	}
	ctx, end := span.Start(ctx, "container stop", span.Container.String(rec.ID), span.Sandbox.String(rec.Config.SandboxID))
	defer func() { end(err) }()
	if grace > 0 {
		err := m.signal(ctx, rec, rec.StopSignal, false)
		if err == nil {
			err = exitWithin(ctx, c, grace)
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		m.log.DebugContext(ctx, "container did not stop by itself, killing it", logfields.Container, rec.ID, logfields.Error, err)
	}
	if err := m.signal(ctx, rec, kill, true); err != nil {
		// Its sandbox may have ended just now, which ends the container too.
		if exitWithin(ctx, c, 2*endedPatience) == nil {
			return nil
		}
		return fmt.Errorf("it could not be killed, its pod may hang; stopping the pod ends it: %w", err)
	}
	if err := exitWithin(ctx, c, killTimeout); err != nil {
		return fmt.Errorf("it was killed but did not end, its pod may hang; stopping the pod ends it: %w", err)
	}
	return nil
}

// exitWithin waits for the exit; DeadlineExceeded when there was none in time.
func exitWithin(ctx context.Context, c *container, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.exited:
		return nil
	case <-timer.C:
		return fmt.Errorf("no exit within %s: %w", d, context.DeadlineExceeded)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Manager) signal(ctx context.Context, rec record, sig unix.Signal, all bool) error {
	tasks, err := m.sandboxes.Tasks(ctx, rec.Config.SandboxID)
	if err != nil {
		return err
	}
	return signal(ctx, tasks, rec.ID, sig, all)
}

// signal sends within a bounded time. A process that has ended needs no signal.
func signal(ctx context.Context, tasks task.Service, id string, sig unix.Signal, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout)
	defer cancel()
	if err := tasks.Signal(ctx, task.ID{Container: id}, uint32(sig), all); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("signal %s: %w", unix.SignalName(sig), err)
	}
	return nil
}

// Remove kills the container where it runs and forgets it with all that was made for it, but not its log. It is
// idempotent and succeeds for an id that is not known.
func (m *Manager) Remove(ctx context.Context, id string) error {
	c, err := m.find(id)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	return m.remove(ctx, c)
}

func (m *Manager) remove(ctx context.Context, c *container) error {
	release, err := c.acquireToEnd(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer release()
	if err := m.stop(ctx, c, 0); err != nil {
		return err
	}
	if err := m.move(c, opRemove, nil); err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "container.removing"); err != nil {
		return err
	}
	rec := c.snapshot()
	m.tell(ctx, MomentRemoved, rec)
	if err := m.release(ctx, rec); err != nil {
		return err
	}
	if err := m.forget(c); err != nil {
		return err
	}
	m.publish(event.Deleted, rec)
	return nil
}

// release frees everything of a container but its record and name. Every step may be repeated.
func (m *Manager) release(ctx context.Context, rec record) error {
	if err := m.deleteTask(ctx, rec); err != nil {
		return err
	}
	if err := m.removeVolumes(ctx, rec); err != nil {
		return err
	}
	if err := m.images.Unuse(ctx, rec.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(m.bundle(rec.ID)); err != nil {
		return fmt.Errorf("bundle: %w", err)
	}
	return nil
}

// deleteTask forgets the container in its sandbox, unless the sandbox has ended.
func (m *Manager) deleteTask(ctx context.Context, rec record) error {
	tasks, err := m.sandboxes.Tasks(ctx, rec.Config.SandboxID)
	if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
		return nil
	} else if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	err = tasks.Delete(bounded, task.ID{Container: rec.ID})
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	// A sandbox that ended meanwhile has taken the container with it.
	if _, gone := m.sandboxes.Tasks(ctx, rec.Config.SandboxID); errdefs.IsNotFound(gone) || errdefs.IsFailedPrecondition(gone) {
		return nil
	}
	return err
}

// StopAll kills all containers of a sandbox, which its manager is about to stop. It is bounded in time also where
// the sandbox does not answer.
func (m *Manager) StopAll(ctx context.Context, sandboxID string) error {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout+killTimeout)
	defer cancel()
	return forEach(m.of(sandboxID), func(c *container) error {
		if rec := c.snapshot(); !rec.alive() {
			return nil
		}
		return m.Stop(ctx, c.snapshot().ID, 0)
	})
}

// RemoveAll removes all containers of a sandbox that is stopped.
func (m *Manager) RemoveAll(ctx context.Context, sandboxID string) error {
	return forEach(m.of(sandboxID), func(c *container) error { return m.Remove(ctx, c.snapshot().ID) })
}

// forEach runs fn for all at once and joins the errors.
func forEach(list []*container, fn func(*container) error) error {
	errs := make([]error, len(list))
	var group sync.WaitGroup
	for i, c := range list {
		group.Go(func() {
			if err := fn(c); err != nil {
				errs[i] = fmt.Errorf("container %s: %w", c.snapshot().ID, err)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
