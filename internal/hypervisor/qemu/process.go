package qemu

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// tcgWarning is in a line for every feature that emulation leaves out, whatever becomes of the guest.
const tcgWarning = "TCG doesn't support requested feature"

// process is a running QEMU and its end.
type process struct {
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed after it was reaped
}

// startProcess starts QEMU. It dies with the caller's process: the kernel kills it when the thread that
// forked it ends, so that thread is kept until QEMU was reaped. os/exec asks for that signal after it has
// changed the credentials, which would clear it.
func startProcess(path string, args []string, files []*os.File, user *hypervisor.User) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), stderr: &tail{max: 4 << 10, noise: tcgWarning}, done: make(chan struct{})}
	p.cmd.Dir = "/"
	p.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	p.cmd.ExtraFiles = files
	p.cmd.Stderr = p.stderr
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL,
		Setsid:    true, // signals of a terminal are not for it
	}
	if user != nil {
		p.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: user.UID, Gid: user.GID, Groups: kvmGroup()}
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		p.cmd.Wait() // how it ended is in ProcessState
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w: %w", path, err, errorClass(err))
	}
	return p, nil
}

// errorClass is the class of an error of the host's kernel.
func errorClass(err error) error {
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

// kvmGroup is the group through which an unprivileged QEMU opens /dev/kvm, where the host has one.
func kvmGroup() []uint32 {
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

// kill ends the process. os.Process signals through a pidfd, so that it never hits another process.
func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// end says how the process ended. It is called after done.
func (p *process) end() string {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return fmt.Sprintf("QEMU was killed by signal %d (%s)", status.Signal(), status.Signal())
	}
	return fmt.Sprintf("QEMU exited with status %d", p.cmd.ProcessState.ExitCode())
}
