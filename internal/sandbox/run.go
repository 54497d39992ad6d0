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
	"github.com/pistis-run/pistis/internal/span"
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
	sb := newSandbox(record{ID: id, Config: cfg, State: Creating, Created: time.Now(), Kind: m.kinds.Of(cfg.Handler)})
	release, err := sb.claim.Acquire(ctx)
	if err != nil {
		m.names.Release(cfg.name(), id)
		return "", err
	}
	defer release()
	ctx, end := span.Start(ctx, "sandbox run", span.Sandbox.String(id), span.Handler.String(cfg.Handler))
	defer func() { end(err) }()
	unhold, err := m.plugins.Hold(ctx)
	if err != nil {
		m.names.Release(cfg.name(), id)
		return "", err
	}
	defer unhold()
	m.add(sb)
	network, err := m.start(ctx, sb, launcher)
	if err != nil {
		return "", errors.Join(err, m.undo(ctx, sb, err))
	}
	if err = m.ready(ctx, sb, network); err != nil {
		return "", errors.Join(err, m.refused(ctx, sb, err))
	}
	m.publish(event.Created, id)
	m.publish(event.Started, id)
	m.watch(sb) // after these: it publishes the end
	return id, nil
}

// start makes all of a sandbox but its being Ready. The network is set up beside the launch, which asks for it when it
// cannot go on without; it is set up when start returns.
func (m *Manager) start(ctx context.Context, sb *sandbox, launcher Launcher) (*connecting, error) {
	// All that it is going to have, in one step: what was not made is taken back as well as what was.
	err := m.update(sb, func(r *record) {
		r.Launched = true
		if !r.Config.HostNetwork {
			r.NetNS, r.Networked = m.netnsPath(r.ID), true
		}
	})
	if err != nil {
		return nil, err
	}
	if err := failpoint.Hit(ctx, "sandbox.reserved"); err != nil {
		return nil, err
	}
	rec, _ := sb.snapshot()
	if err := m.createNetNS(ctx, rec); err != nil {
		return nil, err
	}
	network := m.connect(ctx, rec)
	defer network.stop()
	req := rec.launchRequest()
	req.Connected = network.wait
	req.Save = func(state json.RawMessage) error {
		return m.update(sb, func(r *record) { r.LaunchState = state })
	}
	launching, launched := span.Start(ctx, "sandbox launch")
	instance, err := launcher.Launch(launching, req)
	launched(err)
	if err != nil {
		return nil, err
	}
	sb.setInstance(instance)
	if _, err = network.wait(ctx); err == nil {
		err = failpoint.Hit(ctx, "sandbox.launched")
	}
	return network, err
}

// ready makes a sandbox Ready, if plugins agree. Nobody sees it before.
func (m *Manager) ready(ctx context.Context, sb *sandbox, network *connecting) error {
	status, _ := m.status(sb)
	status.State, status.IPs = Ready, network.result.IPs
	if err := m.plugins.TellPod(ctx, Started, status); err != nil {
		return err
	}
	if _, err := m.move(sb, opReady, func(r *record) { r.IPs = network.result.IPs }); err != nil {
		return err
	}
	m.log.InfoContext(ctx, "sandbox is ready", logfields.Sandbox, status.ID, logfields.Pod, status.Config.Namespace+"/"+status.Config.Name,
		logfields.Handler, status.Config.Handler, logfields.Network, network.took.Round(time.Microsecond), logfields.Launch, time.Since(status.Created).Round(time.Microsecond))
	return failpoint.Hit(ctx, "sandbox.ready")
}

func (m *Manager) createNetNS(ctx context.Context, rec record) (err error) {
	switch {
	case rec.Config.HostNetwork:
		return nil
	case rec.Config.User != nil:
		_, err = m.netns.CreateOwned(m.netnsDir, rec.ID, *rec.Config.User)
	default:
		_, err = m.netns.Create(m.netnsDir, rec.ID)
	}
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	return failpoint.Hit(ctx, "sandbox.netns")
}

// connecting is the set-up of a sandbox's network, which goes on beside its launch.
type connecting struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when what follows is set
	result Connection
	took   time.Duration
	err    error
}

// connect begins to set the network up. The caller stops it, which after its end does nothing.
func (m *Manager) connect(ctx context.Context, rec record) *connecting {
	ctx, cancel := context.WithCancel(ctx)
	c := &connecting{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		if rec.Config.HostNetwork {
			return
		}
		begin := time.Now()
		ctx, end := span.Start(ctx, "network setup")
		result, err := m.network.Setup(ctx, rec.networkPod())
		end(err)
		if err != nil {
			c.err = fmt.Errorf("network: %w", err)
			return
		}
		for _, ip := range result.IPs {
			c.result.IPs = append(c.result.IPs, ip.String())
		}
		c.result.DNS = DNS{Servers: result.DNSServers, Searches: result.DNSSearches, Options: result.DNSOptions}
		c.took = time.Since(begin)
		c.err = failpoint.Hit(ctx, "sandbox.network")
	}()
	return c
}

func (c *connecting) wait(ctx context.Context) (Connection, error) {
	select {
	case <-c.done:
		return c.result, c.err
	case <-ctx.Done():
		return Connection{}, context.Cause(ctx)
	}
}

func (c *connecting) stop() {
	c.cancel()
	<-c.done
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

// refused undoes a start that a plugin did not want, and says so to those that were asked before it.
func (m *Manager) refused(ctx context.Context, sb *sandbox, cause error) error {
	undoErr := m.undo(ctx, sb, cause)
	ctx, cancel := cleanup.Detach(ctx)
	defer cancel()
	m.tell(ctx, Stopped, sb)
	m.tell(ctx, Removed, sb)
	return undoErr
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
	release, err := sb.claim.Acquire(m.ctx)
	if err != nil {
		return
	}
	defer release()
	ctx, cancel := cleanup.Detach(m.ctx)
	defer cancel()
	if rec, _ := sb.snapshot(); rec.Launched { // else a stop came first
		m.tell(ctx, Stopped, sb)
	}
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
