package sandbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/span"
)

// Stop ends the sandbox with its containers and frees its network. It is idempotent, goes on where an earlier
// call failed, and succeeds for an id that is not known.
func (m *Manager) Stop(ctx context.Context, id string) error {
	return m.claimed(ctx, id, func(sb *sandbox) error { return m.stop(ctx, sb) })
}

// Remove stops the sandbox, removes its containers and forgets it. It is idempotent and succeeds for an id that is
// not known.
func (m *Manager) Remove(ctx context.Context, id string) error {
	return m.claimed(ctx, id, func(sb *sandbox) error {
		if err := m.stop(ctx, sb); err != nil {
			return err
		}
		return m.remove(ctx, sb)
	})
}

// errEnding is what an operation is told that gives way.
var errEnding = fmt.Errorf("the pod is being stopped: %w", errdefs.ErrAborted)

// claimed runs fn, which ends the sandbox, while no other operation runs on it.
func (m *Manager) claimed(ctx context.Context, id string, fn func(*sandbox) error) error {
	sb, err := m.find(id)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	release, err := sb.claim.AcquireToEnd(ctx, errEnding)
	if err != nil {
		return err
	}
	defer release()
	sb.mu.Lock()
	removed := sb.removed
	sb.mu.Unlock()
	if removed {
		return nil
	}
	return fn(sb)
}

func (m *Manager) stop(ctx context.Context, sb *sandbox) (err error) {
	rec, _ := sb.snapshot()
	ctx, end := span.Start(ctx, "sandbox stop", span.Sandbox.String(rec.ID), span.Handler.String(rec.Config.Handler))
	defer func() { end(err) }()
	if rec.State == Ready {
		// While they can still be reached. If the guest does not answer any more they end with the sandbox.
		if err := m.containers.StopAll(ctx, rec.ID); err != nil {
			m.log.WarnContext(ctx, "containers did not stop before their sandbox", logfields.Sandbox, rec.ID, logfields.Error, err)
		}
	}
	if _, err := m.move(sb, opStop, nil); err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "sandbox.stopping"); err != nil {
		return err
	}
	if rec.Launched { // else it was stopped before, or has ended by itself
		m.tell(ctx, Stopped, sb)
	}
	return m.release(ctx, sb)
}

func (m *Manager) remove(ctx context.Context, sb *sandbox) error {
	rec, _ := sb.snapshot()
	if _, err := m.move(sb, opRemove, nil); err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "sandbox.removing"); err != nil {
		return err
	}
	if err := m.containers.RemoveAll(ctx, rec.ID); err != nil {
		return err
	}
	m.tell(ctx, Removed, sb)
	return m.delete(sb, rec.ID)
}

// tell plugins of something that they cannot change any more.
func (m *Manager) tell(ctx context.Context, moment Moment, sb *sandbox) {
	status, _ := m.status(sb)
	if err := m.plugins.TellPod(ctx, moment, status); err != nil {
		m.log.WarnContext(ctx, "plugins could not be told of a pod", logfields.Sandbox, status.ID, logfields.Reason, string(moment), logfields.Error, err)
	}
}

// delete forgets a sandbox and tells so, with what it was last.
func (m *Manager) delete(sb *sandbox, id string) error {
	deleted := m.events.Describe(event.Event{Kind: event.Deleted, ID: id, SandboxID: id})
	if err := m.forget(sb); err != nil {
		return err
	}
	m.events.Publish(deleted)
	return nil
}

// release frees what the record says that the sandbox has, and does not repeat a step that succeeded.
func (m *Manager) release(ctx context.Context, sb *sandbox) error {
	if err := m.separate(ctx, sb); err != nil {
		return err
	}
	rec, _ := sb.snapshot()
	if rec.Config.HostNetwork {
		return nil
	}
	// The namespace may exist though the record does not say so.
	path := cmp.Or(rec.NetNS, m.netnsPath(rec.ID))
	if err := m.netns.Remove(path); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if rec.NetNS != "" {
		m.note(sb, func(r *record) { r.NetNS = "" })
	}
	return nil
}

// separate ends the instance and its network. Of a pod on the host's kernel the one beside the other: its containers
// were stopped before, and networks cut its interface off before or as its addresses become free. A VM takes much longer
// than its network, and its disk, on a full one of the host's, makes room for the network's own records.
func (m *Manager) separate(ctx context.Context, sb *sandbox) error {
	rec, _ := sb.snapshot()
	if launcher := m.launchers[rec.Config.Handler]; launcher != nil && launcher.VM() {
		if err := m.endInstance(ctx, sb); err != nil {
			return err
		}
		return m.disconnect(ctx, sb)
	}
	var group sync.WaitGroup
	var networkErr error
	group.Go(func() { networkErr = m.disconnect(ctx, sb) })
	err := m.endInstance(ctx, sb)
	group.Wait()
	return errors.Join(err, networkErr)
}

func (m *Manager) disconnect(ctx context.Context, sb *sandbox) error {
	rec, _ := sb.snapshot()
	if !rec.Networked {
		return nil
	}
	if err := m.network.Teardown(ctx, rec.networkPod()); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	m.note(sb, func(r *record) { r.Networked = false })
	return nil
}

// endInstance stops the instance, if there is one, and removes what was made for it.
func (m *Manager) endInstance(ctx context.Context, sb *sandbox) error {
	rec, instance := sb.snapshot()
	if !rec.Launched {
		return nil
	}
	launcher, ok := m.launchers[rec.Config.Handler]
	if !ok {
		return fmt.Errorf("instance: its runtime handler %q is no longer configured; configure it again to remove the pod: %w", rec.Config.Handler, errdefs.ErrFailedPrecondition)
	}
	var stopErr error
	if instance != nil {
		// Cleanup ends by force what does not stop; its success is what counts.
		stopErr = instance.Stop(ctx)
	}
	if err := launcher.Cleanup(ctx, rec.launchRequest()); err != nil {
		return fmt.Errorf("instance: %w", errors.Join(stopErr, err))
	}
	if stopErr != nil {
		m.log.WarnContext(ctx, "sandbox had to be ended by force", logfields.Sandbox, rec.ID, logfields.Error, stopErr)
	}
	if instance != nil {
		if err := instance.Close(); err != nil {
			m.log.DebugContext(ctx, "close connection to sandbox", logfields.Sandbox, rec.ID, logfields.Error, err)
		}
		sb.setInstance(nil)
	}
	m.note(sb, func(r *record) { r.Launched, r.LaunchState = false, nil })
	return nil
}
