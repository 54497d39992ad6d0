package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	exitUnknown = 255
	exitKilled  = 128 + uint32(unix.SIGKILL)
)

// process is a container's own process or an exec.
type process struct {
	id task.ID
	// settled is closed when a start has come to its end, or can no more.
	settled chan struct{}
	// exited is closed after the output was drained; exit is set before.
	exited chan struct{}

	mu    sync.Mutex
	state state
	proc  *runc.Process // nil before there is one
	exit  task.Exit
	// abort ends the call of the runtime that starts a container; nil for an exec, and before there is one.
	abort context.CancelFunc
}

func newProcess(id task.ID, s state) *process {
	return &process{id: id, state: s, settled: make(chan struct{}), exited: make(chan struct{})}
}

func (p *process) name() string {
	if p.id.Exec == "" {
		return "container " + p.id.Container
	}
	return "exec " + p.id.Exec + " in container " + p.id.Container
}

// pid of a process that runs.
func (p *process) pid() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != running || p.proc == nil {
		return 0, fmt.Errorf("%s is %s: %w", p.name(), p.state, errdefs.ErrFailedPrecondition)
	}
	return p.proc.PID(), nil
}

// step changes the state.
func (p *process) step(op operation) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stepLocked(op)
}

func (p *process) stepLocked(op operation) error {
	next, err := table().Next(p.state, op)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	p.state = next
	return nil
}

// claim makes the caller the one who starts the process; abort ends that.
func (p *process) claim(abort context.CancelFunc) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.stepLocked(opStart); err != nil {
		return err
	}
	p.abort = abort
	return nil
}

// cancel ends a process that was only created, which it tells, and the start of one that is being started.
func (p *process) cancel(exit task.Exit) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == starting && p.abort != nil {
		p.abort()
	}
	return p.state == created && p.finishLocked(exit)
}

// discard lets go of those who wait for a process that was never started.
func (p *process) discard() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit.At.IsZero() {
		p.exit = task.Exit{Code: exitUnknown, At: time.Now(), Reason: "deleted before it was started"}
		close(p.exited)
	}
}

// check tells whether the state allows an operation.
func (p *process) check(op operation) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := table().Next(p.state, op); err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	return nil
}

func (p *process) is(s state) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == s
}

// adopt makes the process a running one.
func (p *process) adopt(proc *runc.Process) {
	p.mu.Lock()
	p.proc = proc
	_ = p.stepLocked(opStarted) // nobody else leaves the state starting
	p.mu.Unlock()
	close(p.settled)
}

// fail ends a process that could not be started.
func (p *process) fail(exit task.Exit) {
	close(p.settled)
	p.finish(exit)
}

// finish makes the exit known.
func (p *process) finish(exit task.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finishLocked(exit)
}

func (p *process) finishLocked(exit task.Exit) bool {
	if p.stepLocked(opExit) != nil {
		return false
	}
	p.exit = exit
	close(p.exited)
	return true
}

// signal sends to the process alone. NotFound when it has ended.
func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	proc, state := p.proc, p.state
	p.mu.Unlock()
	err := os.ErrProcessDone
	switch {
	case proc != nil:
		err = proc.Signal(sig)
	case state != stopped && state != deleting:
		return fmt.Errorf("signal: %s is %s: %w", p.name(), state, errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal: %s has ended: %w", p.name(), errdefs.ErrNotFound)
	}
	return err
}
