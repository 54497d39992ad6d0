package shim

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm"
)

// maxExecs bounds the execs of one container: a guest that never ends them must not fill the host's memory.
const maxExecs = 1024

// process is a container's own process or one that was added to it.
type process struct {
	id       task.ID
	terminal bool
	paths    stdioPaths
	// io is set before the process is created.
	io *processIO
	// made is closed when the creation has ended, well or not.
	made chan struct{}
	// settled is closed when the start was answered, or can no more be asked for: an exit is published after it.
	settled     chan struct{}
	settledOnce sync.Once
	// exited is closed after the output was drained; exit is set before.
	exited chan struct{}
	// forget ends the wait for the exit of a process that is deleted without having been started.
	forget context.CancelFunc

	mu    sync.Mutex
	state processState
	pid   uint32
	user  task.User
	exit  task.Exit
}

func newProcess(id task.ID, terminal bool, paths stdioPaths) *process {
	return &process{
		id: id, terminal: terminal, paths: paths, state: processCreating,
		made: make(chan struct{}), settled: make(chan struct{}), exited: make(chan struct{}), forget: func() {},
	}
}

// step changes the state, and while it holds the lock does what belongs to the change.
func (p *process) step(op operation, change ...func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next, err := processTable().Next(p.state, op)
	if err != nil {
		if p.state == processStopped && (op == opSignal || op == opUse) {
			return fmt.Errorf("%s: the process has ended: %w", p.name(), errdefs.ErrNotFound)
		}
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	p.state = next
	for _, f := range change {
		f()
	}
	return nil
}

func (p *process) settle() { p.settledOnce.Do(func() { close(p.settled) }) }

// abandon gives up a creation that is under way and waits for its end; it tells whether there was one. The caller of
// such a creation has gone, which only the end of its call tells the shim.
func (p *process) abandon(ctx context.Context) (bool, error) {
	if p.step(opAbandon) != nil {
		return false, nil
	}
	select {
	case <-p.made:
		return true, nil
	case <-ctx.Done():
		return true, fmt.Errorf("%s: its creation does not end, and is undone when it does: %w", p.name(), ctx.Err())
	}
}

// finish makes the exit known, once: the first that is told counts. It tells whether this was it.
func (p *process) finish(exit task.Exit) bool {
	first := false
	p.step(opExit, func() {
		if first = p.exit.At.IsZero(); first {
			p.exit = exit
			close(p.exited)
		}
	})
	return first
}

// discard lets go of a process that is deleted.
func (p *process) discard() {
	p.forget()
	p.settle()
	p.io.close()
	p.finish(task.Exit{Code: exitUnknown, At: time.Now(), Reason: "deleted before it was started"})
}

func (p *process) name() string {
	if p.id.Exec == "" {
		return "container " + p.id.Container
	}
	return "exec " + p.id.Exec + " in container " + p.id.Container
}

// snapshot is what State answers.
func (p *process) snapshot() (processState, uint32, task.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.pid, p.exit
}

// container is one container of the pod.
type container struct {
	*process
	bundle    string
	disks     []vm.Disk // its layers, the lowest first, then its block devices
	shares    []string
	stdinOnce bool
	log       *stdio.Log // nil: none; set before the state is created

	execMu sync.Mutex
	execs  map[string]*process
}

// process finds the container's own process or an exec.
func (c *container) lookup(exec string) (*process, error) {
	if exec == "" {
		return c.process, nil
	}
	c.execMu.Lock()
	defer c.execMu.Unlock()
	if p := c.execs[exec]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %s in container %s: %w", exec, c.id.Container, errdefs.ErrNotFound)
}

// addExec reserves an exec's id.
func (c *container) addExec(p *process) error {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	if c.execs[p.id.Exec] != nil {
		return fmt.Errorf("%s: %w", p.name(), errdefs.ErrAlreadyExists)
	}
	if len(c.execs) >= maxExecs {
		return fmt.Errorf("%s: there are %d execs that have not ended: %w", p.name(), maxExecs, errdefs.ErrResourceExhausted)
	}
	c.execs[p.id.Exec] = p
	return nil
}

func (c *container) removeExec(id string) {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	delete(c.execs, id)
}

// discardExecs lets go of the execs of a container that is deleted: the guest has deleted them with it.
func (c *container) discardExecs() {
	c.execMu.Lock()
	defer c.execMu.Unlock()
	for id, p := range c.execs {
		if p.step(opDelete) == nil {
			p.discard()
		} else {
			_ = p.step(opAbandon) // others end with the container's processes
		}
		delete(c.execs, id)
	}
}

// check tells whether the state allows an operation, without doing it.
func (p *process) check(op operation) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := processTable().Next(p.state, op); err != nil {
		return fmt.Errorf("%s: %w", p.name(), err)
	}
	return nil
}
