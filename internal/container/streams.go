package container

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
)

// Attach joins the streams of a container, which may be created or running, until its output ends or ctx does. resize may
// be nil.
func (m *Manager) Attach(ctx context.Context, id string, tty bool, stdio task.Stdio, resize <-chan Size) error {
	rec, tasks, err := m.running(ctx, id, Created, Starting, Running)
	if err != nil {
		return err
	}
	if stdio.Stdin != nil && !rec.Config.Stdin {
		return fmt.Errorf("container %s was created without stdin: %w", rec.ID, errdefs.ErrFailedPrecondition)
	}
	if tty {
		stdio.Stderr = nil // a terminal has one output
	}
	s, err := attach(ctx, tasks, task.ID{Container: rec.ID}, stdio, resize)
	if err != nil {
		return err
	}
	defer s.stop()
	return s.wait(ctx, 0)
}

// execution is one further process in a container, with the streams of a client.
type execution struct {
	tasks  task.Service
	id     task.ID
	tty    bool
	stdio  task.Stdio
	resize <-chan Size
	// drain bounds how long output is waited for after the exit; 0 waits for all of it.
	drain time.Duration
	// patience is how long the client waits for what is left of the process to be removed. What takes longer goes on beside, until
	// life ends.
	patience time.Duration
	life     context.Context
	beside   func(func())
	log      *slog.Logger
}

// run runs the process to its end. When it returns nothing of it is left, unless its runtime does not answer.
func (e *execution) run(ctx context.Context, process json.RawMessage) (task.Exit, error) {
	if e.tty {
		e.stdio.Stderr = nil // a terminal has one output
	}
	err := e.tasks.Exec(ctx, task.ExecRequest{
		ID: e.id, Process: process, Terminal: e.tty,
		Stdin: e.stdio.Stdin != nil, Stdout: e.stdio.Stdout != nil, Stderr: e.stdio.Stderr != nil,
	})
	if err != nil && ctx.Err() == nil {
		return task.Exit{}, err
	}
	// A call that was given up may have made the process all the same.
	defer e.delete(ctx)
	if err != nil {
		return task.Exit{}, withCause(ctx, err)
	}
	s, err := attach(ctx, e.tasks, e.id, e.stdio, e.resize)
	if err != nil {
		return task.Exit{}, err
	}
	defer s.stop()
	starting, started := span.Start(ctx, "task start")
	pid, err := e.tasks.Start(starting, e.id)
	span.Set(starting, span.PID.Int64(int64(pid)))
	started(err)
	if err != nil {
		return task.Exit{}, withCause(ctx, err)
	}
	exit, err := e.tasks.Wait(ctx, e.id)
	if err != nil {
		return task.Exit{}, withCause(ctx, err)
	}
	if err := s.wait(ctx, e.drain); err != nil {
		return task.Exit{}, fmt.Errorf("output: %w", withCause(ctx, err))
	}
	return exit, nil
}

// delete removes what is left of the process. A probe that has timed out is to be told so now, and not when a guest that hangs
// has been waited for.
func (e *execution) delete(ctx context.Context) {
	done := make(chan struct{})
	e.beside(func() {
		defer close(done)
		ctx, cancel := cleanup.Detach(ctx)
		defer cancel()
		defer context.AfterFunc(e.life, cancel)()
		e.remove(ctx)
	})
	timer := time.NewTimer(e.patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// remove forgets the process, and kills it first where it may still run: after the end of the client, or after a failure.
func (e *execution) remove(ctx context.Context) {
	err := e.tasks.Delete(ctx, e.id)
	if errdefs.IsFailedPrecondition(err) {
		err = e.kill(ctx)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		e.log.WarnContext(ctx, "process of an exec could not be removed; it ends with its container", logfields.Container, e.id.Container, logfields.Exec, e.id.Exec, logfields.Error, err)
	}
}

func (e *execution) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, signalTimeout+killTimeout)
	defer cancel()
	if err := e.tasks.Signal(ctx, e.id, uint32(kill), false); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("kill: %w", err)
	}
	if _, err := e.tasks.Wait(ctx, e.id); err != nil {
		return err
	}
	return e.tasks.Delete(ctx, e.id)
}

// streams are the goroutines that serve a client; stop ends and joins them.
type streams struct {
	cancel   context.CancelFunc
	group    sync.WaitGroup
	attached chan error // one value, when the output has ended
}

// attach starts to carry the streams and the sizes of the terminal.
func attach(ctx context.Context, tasks task.Service, id task.ID, stdio task.Stdio, resize <-chan Size) (*streams, error) {
	attacher, ok := tasks.(task.Attacher)
	wanted := stdio.Stdin != nil || stdio.Stdout != nil || stdio.Stderr != nil
	if wanted && !ok {
		return nil, fmt.Errorf("its runtime cannot carry streams: %w", errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &streams{cancel: cancel, attached: make(chan error, 1)}
	if wanted {
		s.group.Go(func() { s.attached <- attacher.Attach(ctx, id, stdio) })
	} else {
		s.attached <- nil
	}
	if resizer, ok := tasks.(task.Resizer); ok && resize != nil {
		s.group.Go(func() { follow(ctx, resizer, id, resize) })
	}
	return s, nil
}

// follow applies sizes until there are no more. A size that comes before the process or after it is of no use to anybody.
func follow(ctx context.Context, resizer task.Resizer, id task.ID, sizes <-chan Size) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if err := resizer.Resize(ctx, id, uint32(size.Width), uint32(size.Height)); err != nil {
				slog.DebugContext(ctx, "terminal not resized", logfields.Container, id.Container, logfields.Exec, id.Exec, logfields.Error, err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// wait returns when the output has ended, or after the limit if there is one.
func (s *streams) wait(ctx context.Context, limit time.Duration) error {
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case err := <-s.attached:
		return err
	case <-expired:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *streams) stop() {
	s.cancel()
	s.group.Wait()
}

// withCause says that it was the caller's end, or a timeout, that made a call fail.
func withCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
