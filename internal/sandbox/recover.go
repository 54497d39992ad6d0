package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pistis-run/pistis/internal/logfields"
)

const (
	// reconnectTimeout bounds what one sandbox may take to answer after a restart of the daemon.
	reconnectTimeout = 30 * time.Second
	// recoverParallel sandboxes are recovered at a time.
	recoverParallel = 8
)

// Recover reads the records and attaches to what runs: once, before any other call. A sandbox that has gone meanwhile
// becomes NotReady, one that was half made or half removed is removed, and what belongs to no sandbox is removed as well.
// An error of one sandbox is logged and leaves it NotReady; the error returned means that the records cannot be read, or that
// some are of handlers that are others now. Then nothing was done.
func (m *Manager) Recover(ctx context.Context) error {
	records, corrupt, err := m.records.Load()
	if err != nil {
		return fmt.Errorf("recover sandboxes: %w", err)
	}
	for _, c := range corrupt {
		fate := "what it described is removed"
		if _, older := records[c.ID]; older {
			fate = "an older one counts"
		}
		m.log.ErrorContext(ctx, "sandbox record cannot be read and was moved aside; "+fate, logfields.Sandbox, c.ID, logfields.Path, c.Path, logfields.Error, c.Err)
	}
	if err := m.checkKinds(records); err != nil {
		return fmt.Errorf("recover sandboxes: %w", err)
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, recoverParallel)
	for id, rec := range records {
		sb := newSandbox(rec)
		m.add(sb)
		if err := m.names.Reserve(rec.Config.name(), id); err != nil {
			m.log.ErrorContext(ctx, "two sandboxes have one name", logfields.Sandbox, id, logfields.Error, err)
		}
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := m.recoverOne(ctx, sb); err != nil {
				m.log.ErrorContext(ctx, "sandbox could not be recovered", logfields.Sandbox, id, logfields.Error, err)
			}
		})
	}
	group.Wait()
	if err := m.sweep(ctx); err != nil {
		m.log.ErrorContext(ctx, "left-overs without a sandbox could not be removed", logfields.Error, err)
	}
	return nil
}

// checkKinds looks for sandboxes that their handlers cannot end any more.
func (m *Manager) checkKinds(records map[string]record) error {
	var errs []error
	for id, rec := range records {
		if rec.Launched && rec.Kind != "" {
			errs = append(errs, m.kinds.Check(id, rec.Config.Handler, rec.Kind))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) recoverOne(ctx context.Context, sb *sandbox) error {
	release, err := sb.claim.Acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	rec, _ := sb.snapshot()
	switch rec.State {
	case Creating:
		m.log.InfoContext(ctx, "a sandbox was half created when the daemon ended; undoing it", logfields.Sandbox, rec.ID)
		return m.undo(ctx, sb, errors.New("the daemon ended in the middle"))
	case Ready:
		return m.reconnect(ctx, sb, rec)
	case NotReady:
		return m.endInstance(ctx, sb)
	default: // Removing; the containers are removed when they are recovered
		if err := m.release(ctx, sb); err != nil {
			return err
		}
		return m.delete(sb, rec.ID)
	}
}

// reconnect attaches to a sandbox that was Ready, or finds out that it no longer is.
func (m *Manager) reconnect(ctx context.Context, sb *sandbox, rec record) error {
	instance, err := m.attach(ctx, rec)
	if err == nil {
		sb.setInstance(instance)
		if rec.Kind == "" { // an older daemon's; what could be attached to is of the kind that the handler is
			m.note(sb, func(r *record) { r.Kind = m.kinds.Of(r.Config.Handler) })
		}
		m.watch(sb)
		m.log.InfoContext(ctx, "sandbox goes on", logfields.Sandbox, rec.ID)
		return nil
	}
	reason := "it was gone when the daemon started: " + err.Error()
	if _, err := m.move(sb, opExit, func(r *record) { r.Reason = reason }); err != nil {
		return err
	}
	m.log.WarnContext(ctx, "sandbox ended", logfields.Sandbox, rec.ID, logfields.Reason, reason)
	return m.endInstance(ctx, sb)
}

func (m *Manager) attach(ctx context.Context, rec record) (Instance, error) {
	launcher, err := m.launcher(rec.Config.Handler)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, reconnectTimeout)
	defer cancel()
	return launcher.Reconnect(ctx, rec.launchRequest())
}

// sweep removes what exists of sandboxes without a record.
func (m *Manager) sweep(ctx context.Context) error {
	keep := map[string]bool{}
	m.mu.Lock()
	for id := range m.sandboxes {
		keep[id] = true
	}
	m.mu.Unlock()
	var errs []error
	for _, launcher := range m.launchers {
		errs = append(errs, launcher.Sweep(ctx, keep))
	}
	errs = append(errs, m.network.Reconcile(ctx, keep))
	ids, err := m.netns.List(m.netnsDir)
	errs = append(errs, err)
	for _, id := range ids {
		if !keep[id] {
			err := m.netns.Remove(m.netnsPath(id))
			m.swept("netns", err)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
