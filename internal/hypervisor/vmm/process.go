package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// FirstFD is the number of the first of a command's files.
const FirstFD = 3

// stderrTail is how many bytes of a VMM's standard error are kept.
const stderrTail = 4 << 10

// Command describes a VMM's process.
type Command struct {
	// Name of the VMM for people, as QEMU.
	Name string
	// Path is absolute and of the host, also with a jail.
	Path string
	Args []string
	// Files become descriptors from FirstFD on. Stdout, where set, becomes standard output. They stay the caller's.
	Files  []*os.File
	Stdout *os.File
	// User that it runs as, in these groups beside its own; nil keeps the caller's.
	User   *hypervisor.User
	Groups []uint32
	// Noise: lines of its standard error that contain it are not shown; empty for none.
	Noise string
	// Jail is all of the host that it sees; nil is the host.
	Jail *Jail
}

// Process is a running VMM and its end.
type Process struct {
	name   string
	cmd    *exec.Cmd
	stderr *Tail
	jail   *Jail
	tasks  chan func()   // for the thread in the jail
	done   chan struct{} // closed after it was reaped
}

// Start starts a VMM. It dies with the caller's process: the kernel kills it when the thread that forked it ends, so
// that thread is kept until the VMM was reaped. os/exec asks for that signal after it has changed the credentials,
// which would clear it. That thread is also the one that makes the jail and stays in it.
func Start(c Command) (*Process, error) {
	p := &Process{
		name: c.Name, stderr: NewTail(stderrTail, c.Noise), jail: c.Jail,
		tasks: make(chan func()), done: make(chan struct{}),
	}
	p.cmd = &exec.Cmd{
		Path: c.Path, Args: append([]string{c.Path}, c.Args...), Dir: "/",
		Env:        []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"},
		ExtraFiles: c.Files, Stderr: p.stderr, WaitDelay: time.Second,
		SysProcAttr: &syscall.SysProcAttr{
			Pdeathsig: syscall.SIGKILL,
			Setsid:    true, // signals of a terminal are not for it
		},
	}
	if c.User != nil {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.User.UID, Gid: c.User.GID, Groups: c.Groups}
	}
	if c.Stdout != nil {
		p.cmd.Stdout = c.Stdout
	}
	// Opened here: in the jail there is none.
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p.cmd.Stdin = null
	if c.Stdout == nil {
		p.cmd.Stdout = null
	}
	started := make(chan error)
	onOwnThread(func() { p.run(c, started) })
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w: %w", c.Path, err, ErrorClass(err))
	}
	return p, nil
}

// onOwnThread runs f in a goroutine whose thread ends with it and is not the process's first, which is the one that the
// process is known by and cannot end.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			f()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}

// run is the VMM's thread.
func (p *Process) run(c Command, started chan<- error) {
	err := p.start(c)
	started <- err
	if err != nil {
		return
	}
	reaped := make(chan struct{})
	go func() {
		p.cmd.Wait() // how it ended is in ProcessState
		close(reaped)
	}()
	for {
		select {
		case <-reaped:
			close(p.done)
			return
		case task := <-p.tasks:
			task()
		}
	}
}

func (p *Process) start(c Command) error {
	if c.Jail != nil {
		if err := c.Jail.enter(c); err != nil {
			return fmt.Errorf("jail: %w", err)
		}
		p.cmd.Path = jailedProgram
		p.cmd.Args[0] = filepath.Base(c.Path)
	}
	return p.cmd.Start()
}

// inside runs f on the thread that lives in the jail. Unavailable when the VMM has ended.
func (p *Process) inside(f func() error) error {
	result := make(chan error, 1)
	select {
	case p.tasks <- func() { result <- f() }:
		return <-result
	case <-p.done:
		return fmt.Errorf("%s has ended: %w", p.name, errdefs.ErrUnavailable)
	}
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed after the process was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stderr takes what the VMM says in another way as well.
func (p *Process) Stderr() io.Writer { return p.stderr }

// Said are the last lines of its standard error.
func (p *Process) Said(lines int) string { return p.stderr.Lines(lines) }

// Kill ends the process. os.Process signals through a pidfd, so that it never hits another process.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Success tells whether it exited with status 0. It is called after Done.
func (p *Process) Success() bool { return p.cmd.ProcessState.Success() }

// Killed tells whether it was killed. It is called after Done.
func (p *Process) Killed() bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// End says how the process ended. It is called after Done.
func (p *Process) End() string {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return fmt.Sprintf("%s was killed by signal %d (%s)", p.name, status.Signal(), status.Signal())
	}
	return fmt.Sprintf("%s exited with status %d", p.name, p.cmd.ProcessState.ExitCode())
}

// Ending tells whether the process has ended or is about to: the kernel says so before it closes the process's files.
func (p *Process) Ending() bool {
	select {
	case <-p.done:
		return true
	default:
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		return true
	}
	// The name is in parentheses and may hold anything. After it: state, ppid, pgrp, session, tty, tpgid, flags.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return true
	}
	const exiting = 0x4 // PF_EXITING
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return err != nil || flags&exiting != 0
}

// Confined checks that the kernel filters the system calls of all the process's threads, or of all but the first, for VMMs
// whose first thread does nothing but wait for the others.
func (p *Process) Confined(butFirst bool) error {
	found, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.PID()))
	if err != nil || len(found) == 0 {
		return fmt.Errorf("%s, process %d, cannot be looked at: %w", p.name, p.PID(), errdefs.ErrUnavailable)
	}
	first := fmt.Sprintf("/proc/%d/task/%d/status", p.PID(), p.PID())
	for _, path := range found {
		if butFirst && path == first {
			continue
		}
		status, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return err
		}
		if !bytes.Contains(status, []byte("\nSeccomp:\t2\n")) {
			return fmt.Errorf("%s runs without a filter of its system calls: %w", p.name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// ErrorClass is the class of an error of the host's kernel.
func ErrorClass(err error) error {
	switch {
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE):
		return errdefs.ErrResourceExhausted
	case errors.Is(err, os.ErrPermission):
		return errdefs.ErrPermissionDenied
	case errors.Is(err, os.ErrNotExist):
		return errdefs.ErrNotFound
	}
	return errdefs.ErrFailedPrecondition
}

// KVMGroup is the group through which an unprivileged process opens /dev/kvm, where the host has one.
func KVMGroup() []uint32 {
	info, err := os.Stat("/dev/kvm")
	if err != nil {
		return nil
	}
	stat := info.Sys().(*syscall.Stat_t)
	if stat.Gid == 0 || stat.Mode&0o060 != 0o060 {
		return nil
	}
	return []uint32{stat.Gid}
}
