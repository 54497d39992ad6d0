package reaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxEarly bounds the exits that are kept for processes which nobody has adopted yet.
const maxEarly = 16384

// Exit is how a process ended.
type Exit struct {
	// Code is the exit status, or 128+n for a signal n.
	Code uint32
	At   time.Time
}

// Process is a child whose exit the reaper reports.
type Process struct {
	pid    int
	reaper *Reaper
	done   chan struct{}
	exit   Exit
}

// PID is the process id. It may belong to somebody else once Done is closed.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit is valid once Done is closed.
func (p *Process) Exit() Exit { return p.exit }

// Signal sends a signal, or returns os.ErrProcessDone. It never hits another process that got the same pid.
func (p *Process) Signal(sig unix.Signal) error {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	if p.reaper.procs[p.pid] != p {
		return os.ErrProcessDone
	}
	if err := unix.Kill(p.pid, sig); err != nil {
		if errors.Is(err, unix.ESRCH) {
			return os.ErrProcessDone
		}
		return fmt.Errorf("signal %d to process %d: %w", sig, p.pid, err)
	}
	return nil
}

// Reaper waits for all children. Create it with New and run it with Run.
type Reaper struct {
	mu    sync.Mutex
	procs map[int]*Process
	// early has the exits of unknown children while somebody records.
	early      map[int]Exit
	recordings int
	sigchld    chan os.Signal
}

// New registers for SIGCHLD, so that no exit after it is missed.
func New() *Reaper {
	r := &Reaper{procs: map[int]*Process{}, early: map[int]Exit{}, sigchld: make(chan os.Signal, 1)}
	signal.Notify(r.sigchld, unix.SIGCHLD)
	return r
}

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	defer signal.Stop(r.sigchld)
	for {
		r.reap()
		select {
		case <-ctx.Done():
			return
		case <-r.sigchld:
		}
	}
}

func (r *Reaper) reap() {
	for {
		// The lock is held over wait4 and the delivery, so that a pid in the table is always a living or
		// unreaped child: that is what makes Signal safe.
		r.mu.Lock()
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == nil && pid > 0 {
			r.deliverLocked(pid, status)
		}
		r.mu.Unlock()
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}

func (r *Reaper) deliverLocked(pid int, status unix.WaitStatus) {
	exit := Exit{Code: uint32(status.ExitStatus()), At: time.Now()}
	if status.Signaled() {
		exit.Code = 128 + uint32(status.Signal())
	}
	if p, ok := r.procs[pid]; ok {
		delete(r.procs, pid)
		p.exit = exit
		close(p.done)
		return
	}
	if r.recordings > 0 && len(r.early) < maxEarly {
		r.early[pid] = exit
	}
}

// Start starts the program at path and follows it. The caller keeps the files in attr.
func (r *Reaper) Start(path string, argv []string, attr *os.ProcAttr) (*Process, error) {
	// Locked over the start: the child may have ended before its pid is known here.
	r.mu.Lock()
	defer r.mu.Unlock()
	proc, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	p := r.followLocked(proc.Pid)
	_ = proc.Release() // frees the pidfd: the exit comes from wait4
	return p, nil
}

func (r *Reaper) followLocked(pid int) *Process {
	p := &Process{pid: pid, reaper: r, done: make(chan struct{})}
	r.procs[pid] = p
	return p
}

// RunProgram runs a program to its end; files are its descriptors from 0 on, nil ones /dev/null.
// When ctx ends the program is killed.
func (r *Reaper) RunProgram(ctx context.Context, argv []string, files ...*os.File) (Exit, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return Exit{}, err
	}
	defer null.Close()
	stdio := []*os.File{null, null, null}
	for i, f := range files {
		if f != nil {
			stdio[i] = f
		}
	}
	p, err := r.Start(argv[0], argv, &os.ProcAttr{Dir: "/", Env: os.Environ(), Files: stdio})
	if err != nil {
		return Exit{}, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(unix.SIGKILL) })
	<-p.Done()
	if !stop() {
		return p.Exit(), fmt.Errorf("%s was killed: %w", argv[0], context.Cause(ctx))
	}
	return p.Exit(), nil
}

// Recording keeps the exits of unknown children, so that a grandchild can be adopted after it has ended.
type Recording struct {
	reaper *Reaper
	once   sync.Once
}

// Record starts a recording; begin it before the program that leaves the grandchild, and close it.
func (r *Reaper) Record() *Recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recordings++
	return &Recording{reaper: r}
}

// Adopt follows a process that is, or was within the recording, or will be when its parent ends, a child.
func (rec *Recording) Adopt(pid int) *Process {
	r := rec.reaper
	r.mu.Lock()
	defer r.mu.Unlock()
	if exit, ok := r.early[pid]; ok {
		delete(r.early, pid)
		p := &Process{pid: pid, reaper: r, done: make(chan struct{}), exit: exit}
		close(p.done)
		return p
	}
	return r.followLocked(pid)
}

// Close ends the recording.
func (rec *Recording) Close() {
	rec.once.Do(func() {
		r := rec.reaper
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.recordings--; r.recordings == 0 {
			clear(r.early)
		}
	})
}
