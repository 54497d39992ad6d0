package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/logfields"
)

// Run starts a sandbox and returns its id. AlreadyExists names the sandbox that has the same name, namespace, uid
// and attempt. After an error nothing is left and the name is free, unless the error says that undoing failed
// too; then the sandbox is listed as NotReady, to be stopped and removed.
func (m *Manager) Run(ctx context.Context, cfg Config) (id string, err error) {
	launcher, err := m.launcher(cfg.Handler)
	if err != nil {
		return "", err
	}
	if err := launcher.Validate(cfg); err != nil {
		return "", err
	}
	id = newID()
	if err := m.names.Reserve(cfg.name(), id); err != nil {
		return "", err
	}
	sb := newSandbox(record{ID: id, Config: cfg, State: Creating, Created: time.Now()})
	release, err := sb.acquire(ctx)
	if err != nil {
		m.names.Release(cfg.name(), id)
		return "", err
	}
	defer release()
	m.add(sb)
	if err := m.start(ctx, sb, launcher); err != nil {
		return "", errors.Join(err, m.undo(ctx, sb, err))
	}
	m.publish(event.Created, id)
	m.publish(event.Started, id)
	m.watch(sb) // after these: it publishes the end
	return id, nil
}

// start takes a sandbox from its reserved name to Ready, one saved step after another.
func (m *Manager) start(ctx context.Context, sb *sandbox, launcher Launcher) error {
	begin := time.Now()
	if err := m.update(sb, func(*record) error { return nil }); err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "sandbox.reserved"); err != nil {
		return err
	}
	if err := m.connect(ctx, sb); err != nil {
		return err
	}
	connected := time.Now()
	if err := m.update(sb, func(r *record) error { r.Launched = true; return nil }); err != nil {
		return err
	}
	rec, _ := sb.snapshot()
	req := rec.launchRequest()
	req.Save = func(state json.RawMessage) error {
		return m.update(sb, func(r *record) error { r.LaunchState = state; return nil })
	}
	instance, err := launcher.Launch(ctx, req)
	if err != nil {
		return err
	}
	sb.setInstance(instance)
	if err := failpoint.Hit(ctx, "sandbox.launched"); err != nil {
		return err
	}
	if _, err := m.move(sb, opReady, nil); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "sandbox is ready", logfields.Sandbox, rec.ID, logfields.Pod, rec.Config.Namespace+"/"+rec.Config.Name,
		logfields.Handler, rec.Config.Handler, logfields.Network, connected.Sub(begin).Round(time.Microsecond), logfields.Launch, time.Since(connected).Round(time.Microsecond))
	return failpoint.Hit(ctx, "sandbox.ready")
}

// connect makes the network namespace and sets the network up in it.
func (m *Manager) connect(ctx context.Context, sb *sandbox) error {
	rec, _ := sb.snapshot()
	if rec.Config.HostNetwork {
		return nil
	}
	path, err := m.createNetNS(rec)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if err := m.update(sb, func(r *record) error { r.NetNS, r.Networked = path, true; return nil }); err != nil {
		return err
	}
	if err := failpoint.Hit(ctx, "sandbox.netns"); err != nil {
		return err
	}
	rec, _ = sb.snapshot()
	result, err := m.network.Setup(ctx, rec.networkPod())
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	err = m.update(sb, func(r *record) error {
		r.IPs = nil
		for _, ip := range result.IPs {
			r.IPs = append(r.IPs, ip.String())
		}
		r.DNS = DNS{Servers: result.DNSServers, Searches: result.DNSSearches, Options: result.DNSOptions}
		return nil
	})
	if err != nil {
		return err
	}
	return failpoint.Hit(ctx, "sandbox.network")
}

func (m *Manager) createNetNS(rec record) (path string, err error) {
	if rec.Config.User != nil {
		return m.netns.CreateOwned(m.netnsDir, rec.ID, *rec.Config.User)
	}
	return m.netns.Create(m.netnsDir, rec.ID)
}

// undo takes back a start that failed. Where that is not possible the sandbox stays, as NotReady.
func (m *Manager) undo(ctx context.Context, sb *sandbox, cause error) error {
	ctx, cancel := cleanup.Detach(ctx)
	defer cancel()
	err := m.release(ctx, sb)
	if err == nil {
		err = m.forget(sb)
	}
	if err == nil {
		return nil
	}
	op := opFail
	if rec, _ := sb.snapshot(); rec.State == Ready {
		op = opExit
	}
	_, moveErr := m.move(sb, op, func(r *record) { r.Reason = "start failed: " + cause.Error() })
	return fmt.Errorf("undo: %w", errors.Join(err, moveErr))
}

// watch waits for the instance to end by itself. The caller has put the instance in place.
func (m *Manager) watch(sb *sandbox) {
	rec, instance := sb.snapshot()
	m.watchers.Go(func() {
		reason, err := instance.Wait(m.ctx)
		if m.ctx.Err() != nil {
			return
		}
		if err != nil {
			reason = "the connection to its runtime was lost: " + err.Error()
		}
		if reason == "" {
			reason = "it ended without giving a reason"
		}
		m.exited(sb, rec.ID, reason)
	})
}

// exited records the end of an instance and ends what is left of it. A stop that is under way does that itself.
func (m *Manager) exited(sb *sandbox, id, reason string) {
	left, err := m.move(sb, opExit, func(r *record) { r.Reason = reason })
	if errdefs.IsFailedPrecondition(err) || !left {
		return // stopped already
	}
	m.log.Warn("sandbox ended", logfields.Sandbox, id, logfields.Reason, reason)
	release, err := sb.acquire(m.ctx)
	if err != nil {
		return
	}
	defer release()
	ctx, cancel := cleanup.Detach(m.ctx)
	defer cancel()
	if err := m.endInstance(ctx, sb); err != nil {
		m.log.Error("sandbox ended, but not everything of it could be removed; stopping it tries again", logfields.Sandbox, id, logfields.Error, err)
	}
}

// newID is 32 random bytes in hex.
func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
