package agent

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/agent/stdio"
	"github.com/pistis-run/pistis/internal/runc"
)

// state of a process. creating, starting and deleting are passing: one call has claimed the process.
type state string

const (
	creating state = "being created"
	created  state = "created"
	starting state = "being started"
	running  state = "running"
	stopped  state = "stopped"
	deleting state = "being deleted"
)

// exit is how a process ended.
type exit struct {
	code      uint32
	at        time.Time
	oomKilled bool
	reason    string
}

// process is a container's own, or one that Exec added.
type process struct {
	name  string // for messages: the container's id, with the exec's behind a slash
	stdio *stdio.Set
	made  chan struct{} // closed when the creation has ended, well or not
	done  chan struct{} // closed when exit is set

	mu    sync.Mutex
	state state
	proc  *runc.Process // nil before there is one
	exit  exit
	// refused is why the program cannot be executed; Start says so.
	refused *runc.ProgramError
}

func newProcess(name string) *process {
	return &process{name: name, made: make(chan struct{}), done: make(chan struct{}), state: creating}
}

// claim moves the process to a state if it is in one of those given, else it is a failed precondition.
func (p *process) claim(to state, from ...state) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(from, p.state) {
		return precondition("%s is %s", p.name, p.state)
	}
	p.state = to
	return nil
}

// settle ends a passing state; a process that ended meanwhile stays stopped.
func (p *process) settle(to state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended() && to != deleting {
		to = stopped
	}
	p.state = to
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// finish records the exit, once.
func (p *process) finish(e exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended() {
		return
	}
	p.exit = e
	close(p.done)
	if p.state == created || p.state == running {
		p.state = stopped
	}
}

func (p *process) is(s state) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state == s
}

func (p *process) pid() uint32 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return 0
	}
	return uint32(p.proc.PID())
}

func (p *process) adopt(proc *runc.Process) {
	p.mu.Lock()
	p.proc = proc
	p.mu.Unlock()
	usualTimers(proc.PID())
	if proc.Console != nil {
		p.stdio.SetConsole(proc.Console)
	}
}

// usualTimers gives a process the kernel's usual timer slack instead of ours, which it has inherited. One that has
// ended meanwhile needs none, and nobody refuses it to the first process of a guest.
func usualTimers(pid int) {
	const nanoseconds = "50000"
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/timerslack_ns", pid), []byte(nanoseconds), 0)
}

// signal sends to the process alone.
func (p *process) signal(sig unix.Signal) error {
	p.mu.Lock()
	proc, state := p.proc, p.state
	p.mu.Unlock()
	if proc == nil {
		return precondition("%s is %s", p.name, state)
	}
	if err := proc.Signal(sig); errors.Is(err, os.ErrProcessDone) {
		return precondition("%s has ended", p.name)
	} else if err != nil {
		return err
	}
	return nil
}
