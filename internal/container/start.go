package container

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
)

// endedPatience is how long a lost process waits for its sandbox to be found ended, before it is asked for again.
const endedPatience = time.Second

// Start runs a created container. When that fails the container is Exited, with code 128 (127 and 126 where its command
// does not exist or cannot be executed) and the reason, and the error says the same.
func (m *Manager) Start(ctx context.Context, id string) error {
	c, err := m.find(id)
	if err != nil {
		return err
	}
	release, err := c.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := m.move(c, opStart, nil); err != nil {
		return err
	}
	return m.start(ctx, c)
}

func (m *Manager) start(ctx context.Context, c *container) (err error) {
	rec := c.snapshot()
	ctx, end := span.Start(ctx, "container start", span.Container.String(rec.ID), span.Sandbox.String(rec.Config.SandboxID))
	defer func() { end(err) }()
	tasks, err := m.sandboxes.Tasks(ctx, rec.Config.SandboxID)
	var pid uint32
	if err == nil {
		err = failpoint.Hit(ctx, "container.starting")
	}
	if err == nil {
		err = m.tellStarting(ctx, rec)
	}
	if err == nil {
		starting, started := span.Start(ctx, "task start")
		pid, err = tasks.Start(starting, task.ID{Container: rec.ID})
		span.Set(starting, span.PID.Int64(int64(pid)))
		started(err)
	}
	if err != nil {
		return m.startFailed(ctx, c, tasks, err)
	}
	now := time.Now()
	if err := m.move(c, opStarted, func(r *record) { r.PID, r.Started = pid, now }); err != nil {
		return m.startFailed(ctx, c, tasks, err)
	}
	m.publish(event.Started, rec)
	m.tell(ctx, MomentStarted, c.snapshot())
	m.watch(c)
	return nil
}

// tellStarting asks plugins whether a container may start.
func (m *Manager) tellStarting(ctx context.Context, rec record) error {
	if m.plugins == (noPlugins{}) {
		return nil
	}
	pod, err := m.sandboxes.Status(ctx, rec.Config.SandboxID)
	if err != nil {
		return err
	}
	return m.plugins.Tell(ctx, MomentStarting, pod, rec.status())
}

// startFailed makes sure that nothing runs and records why.
func (m *Manager) startFailed(ctx context.Context, c *container, tasks task.Service, cause error) error {
	rec := c.snapshot()
	if tasks != nil {
		// A call that was given up may have started the process all the same.
		ctx, cancel := cleanup.Detach(ctx)
		defer cancel()
		if err := signal(ctx, tasks, rec.ID, kill, true); err != nil && !errdefs.IsFailedPrecondition(err) {
			m.log.WarnContext(ctx, "container that did not start could not be killed", logfields.Container, rec.ID, logfields.Error, err)
		}
	}
	code, reason := startFailure(cause)
	m.record(c, code, reason, cause.Error(), time.Now())
	return fmt.Errorf("%w (exit code %d)", cause, code)
}

// startFailure tells a command that cannot run from other failures, by the words that runtimes have for it.
func startFailure(err error) (code int32, reason string) {
	text := err.Error()
	if !strings.Contains(text, "exec") {
		return 128, ReasonStartError
	}
	for _, words := range []string{"executable file not found", "no such file or directory"} {
		if strings.Contains(text, words) {
			return 127, ReasonCannotRun
		}
	}
	for _, words := range []string{"permission denied", "exec format error", "is a directory"} {
		if strings.Contains(text, words) {
			return 126, ReasonCannotRun
		}
	}
	return 128, ReasonStartError
}

// watch waits for the exit of a running container.
func (m *Manager) watch(c *container) {
	m.watchers.Go(func() {
		exit, err := m.wait(c)
		if err != nil {
			return // the daemon ends, the container goes on
		}
		m.finish(c, exit)
	})
}

// wait returns how the container ended. The error is of this daemon's end alone: a process whose runtime has gone has
// ended with 255.
func (m *Manager) wait(c *container) (task.Exit, error) {
	rec := c.snapshot()
	for {
		tasks, err := m.sandboxes.Tasks(m.ctx, rec.Config.SandboxID)
		if err == nil {
			var exit task.Exit
			if exit, err = tasks.Wait(m.ctx, task.ID{Container: rec.ID}); err == nil {
				return exit, nil
			}
		}
		if m.ctx.Err() != nil {
			return task.Exit{}, m.ctx.Err()
		}
		if errdefs.IsNotFound(err) {
			return task.Exit{Code: 255, At: time.Now(), Reason: "its runtime does not know it any more: " + err.Error()}, nil
		}
		// The sandbox knows best why its processes cannot be waited for; it may need a moment to find out.
		ctx, cancel := context.WithTimeout(m.ctx, endedPatience)
		reason, ended := m.sandboxes.Ended(ctx, rec.Config.SandboxID)
		cancel()
		if ended == nil {
			if reason == "" {
				reason = "its pod was stopped"
			}
			return task.Exit{Code: 255, At: time.Now(), Reason: reason}, nil
		}
		m.log.Warn("waiting for a container failed, its sandbox goes on; trying again", logfields.Container, rec.ID, logfields.Error, err)
	}
}

func outcome(exit task.Exit) (code int32, reason, message string) {
	code = int32(exit.Code)
	switch {
	case exit.OOMKilled:
		return code, ReasonOOMKilled, exit.Reason
	case code == 0:
		return code, ReasonCompleted, exit.Reason
	case code == 255 && exit.Reason != "":
		return code, ReasonUnknown, exit.Reason
	default:
		return code, ReasonError, exit.Reason
	}
}

// finish records how a process ended. Its time comes from where the process ran, and is believed as far as it can be true.
func (m *Manager) finish(c *container, exit task.Exit) {
	at, now := exit.At, time.Now()
	if at.Before(c.snapshot().Started) || at.After(now) {
		at = now
	}
	code, reason, message := outcome(exit)
	m.record(c, code, reason, message, at)
}

// record makes a container Exited.
func (m *Manager) record(c *container, code int32, reason, message string, at time.Time) {
	m.tell(m.ctx, MomentStopped, c.snapshot()) // before whoever waits for the exit goes on and removes it
	err := m.move(c, opExit, func(r *record) {
		r.Finished, r.PID = at, 0
		r.ExitCode, r.Reason, r.Message = code, reason, message
	})
	if err != nil {
		m.log.Error("exit of a container in an unexpected state", logfields.Container, c.snapshot().ID, logfields.Error, err)
	}
}
