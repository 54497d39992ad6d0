package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu/qmp"
	"github.com/pistis-run/pistis/internal/transport"
)

const (
	// startTimeout bounds QEMU's own start, until its monitor answers.
	startTimeout = 30 * time.Second
	// deathTimeout is how long a QEMU that has closed its monitor gets to exit by itself and say why.
	deathTimeout = 2 * time.Second
	// consoleTail is how many bytes of the console are kept for errors.
	consoleTail = 4 << 10
)

// Start starts QEMU with the guest's processors stopped, calls cfg.Started, and lets them run.
func (d Driver) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	v, err := d.start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return v, nil
}

func (d Driver) start(ctx context.Context, cfg hypervisor.Config) (*vm, error) {
	if err := cfg.Validate(d.Capabilities()); err != nil {
		return nil, err
	}
	if err := checkDisks(cfg.Disks); err != nil {
		return nil, err
	}
	if err := checkNICs(cfg.NICs); err != nil {
		return nil, err
	}
	path, err := lookup(cfg.Binary)
	if err != nil {
		return nil, err
	}
	gift, err := prepare(cfg)
	if err != nil {
		return nil, err
	}
	proc, err := startProcess(path, commandLine(cfg, gift.fds), gift.files, cfg.User)
	gift.closeOwned()
	if err != nil {
		gift.closeOurs()
		return nil, err
	}
	v := newVM(cfg, proc, gift)
	if err := v.boot(ctx, cfg, gift.monitor); err != nil {
		return nil, v.abort(err)
	}
	return v, nil
}

func checkNICs(nics []hypervisor.NIC) error {
	for _, nic := range nics {
		switch {
		case nic.Tap == nil:
			return fmt.Errorf("network card %s: no tap: %w", nic.ID, errdefs.ErrInvalidArgument)
		case len(nic.MAC) != 6:
			return fmt.Errorf("network card %s: MAC address %q is not one of Ethernet: %w", nic.ID, nic.MAC, errdefs.ErrInvalidArgument)
		case nic.MTU != 0 && (nic.MTU < 68 || nic.MTU > 65535):
			return fmt.Errorf("network card %s: MTU %d is not between 68 and 65535: %w", nic.ID, nic.MTU, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// boot runs between the fork and the first instruction of the guest.
func (v *vm) boot(ctx context.Context, cfg hypervisor.Config, monitor *net.UnixConn) error {
	if cfg.Started != nil {
		if err := cfg.Started(v.PID()); err != nil {
			return errors.Join(err, monitor.Close())
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("QEMU does not answer within %v: %w", startTimeout, context.DeadlineExceeded))
	defer cancel()
	client, err := qmp.New(ctx, monitor, v.observe)
	if err != nil {
		return err
	}
	v.setMonitor(client)
	return client.Execute(ctx, "cont", nil, nil)
}

// abort ends a QEMU that could not be started and returns why: its own last words where it died by itself.
func (v *vm) abort(cause error) error {
	defer func() {
		if monitor := v.currentMonitor(); monitor != nil {
			monitor.Close() // it may have been set after QEMU was reaped
		}
	}()
	if errdefs.IsUnavailable(cause) { // the monitor has gone, as it does when QEMU exits
		select {
		case <-v.proc.done:
		case <-time.After(deathTimeout):
		}
	}
	select {
	case <-v.proc.done:
		<-v.done
		return fmt.Errorf("%w: %w", v.err, errdefs.ErrFailedPrecondition)
	default:
	}
	err := v.proc.kill()
	select {
	case <-v.done:
	case <-time.After(hypervisor.ControlTimeout):
		err = errors.Join(err, fmt.Errorf("QEMU, process %d, does not die: %w", v.PID(), errdefs.ErrInternal))
	}
	if said := v.proc.stderr.lines(5); said != "" {
		cause = fmt.Errorf("%w (QEMU said: %s)", cause, said)
	}
	return errors.Join(cause, err)
}

// gift is what a QEMU inherits, and the ends of its sockets that stay here.
type gift struct {
	files []*os.File // become descriptors from firstFD on
	fds   descriptors
	owned []io.Closer // of files, those to close after the fork

	monitor, console, pipe *net.UnixConn // pipe is nil with vsock
}

// prepare opens all that QEMU needs. On error nothing is left open.
func prepare(cfg hypervisor.Config) (*gift, error) {
	g := &gift{}
	if err := g.open(cfg); err != nil {
		g.closeOwned()
		g.closeOurs()
		return nil, err
	}
	return g, nil
}

func (g *gift) open(cfg hypervisor.Config) (err error) {
	if g.monitor, g.fds.monitor, err = g.socket(); err != nil {
		return err
	}
	if g.console, g.fds.console, err = g.socket(); err != nil {
		return err
	}
	if g.fds.kernel, err = g.path("kernel", cfg.Kernel, cfg.User); err != nil {
		return err
	}
	if cfg.Initrd != "" {
		if g.fds.initrd, err = g.path("initrd", cfg.Initrd, cfg.User); err != nil {
			return err
		}
	}
	if err := g.transport(); err != nil {
		return err
	}
	for _, disk := range cfg.Disks {
		f, err := diskFile(disk)
		if err != nil {
			return err
		}
		g.fds.disks = append(g.fds.disks, g.own(f))
	}
	for _, nic := range cfg.NICs {
		g.fds.taps = append(g.fds.taps, g.lend(nic.Tap))
	}
	return g.vhostNet(len(cfg.NICs))
}

// lend passes a file that stays its owner's.
func (g *gift) lend(f *os.File) int {
	g.files = append(g.files, f)
	return firstFD + len(g.files) - 1
}

// own passes a file and closes it here after the fork.
func (g *gift) own(f *os.File) int {
	g.owned = append(g.owned, f)
	return g.lend(f)
}

// path passes a file that QEMU opens again, through /proc, with its own identity.
func (g *gift) path(what, path string, user *hypervisor.User) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("the guest's %s: %w: %w", what, err, errorClass(err))
	}
	n := g.own(f)
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("the guest's %s: %w: %w", what, err, errorClass(err))
	}
	if stat := info.Sys().(*syscall.Stat_t); user != nil && !readable(stat, *user) {
		return 0, fmt.Errorf("the guest's %s %s cannot be read by user %d, whom QEMU runs as; make it readable with chmod a+r: %w",
			what, path, user.UID, errdefs.ErrFailedPrecondition)
	}
	return n, nil
}

func readable(stat *syscall.Stat_t, user hypervisor.User) bool {
	switch {
	case stat.Uid == user.UID:
		return stat.Mode&0o400 != 0
	case stat.Gid == user.GID:
		return stat.Mode&0o040 != 0
	}
	return stat.Mode&0o004 != 0
}

// socket makes a pair and passes one end.
func (g *gift) socket() (*net.UnixConn, int, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("socketpair: %w: %w", err, errorClass(err))
	}
	ours := os.NewFile(uintptr(fds[0]), "socket")
	theirs := os.NewFile(uintptr(fds[1]), "socket")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, 0, errors.Join(err, theirs.Close())
	}
	return conn.(*net.UnixConn), g.own(theirs), nil
}

// transport is AF_VSOCK where the host has vhost-vsock, else a pipe.
func (g *gift) transport() (err error) {
	f, cid, err := openVSOCK()
	if err == nil {
		g.fds.vsock, g.fds.cid = g.own(f), cid
		return nil
	}
	if !errors.Is(err, errNoVhost) {
		return err
	}
	g.pipe, g.fds.pipe, err = g.socket()
	return err
}

// vhostNet opens the host's network accelerator once for every card, if there is one.
func (g *gift) vhostNet(n int) error {
	for range n {
		f, err := os.OpenFile("/dev/vhost-net", os.O_RDWR, 0)
		if noDevice(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("vhost-net: %w: %w", err, errorClass(err))
		}
		g.fds.vhostNet = append(g.fds.vhostNet, g.own(f))
	}
	return nil
}

func (g *gift) closeOwned() {
	for _, f := range g.owned {
		f.Close()
	}
}

func (g *gift) closeOurs() {
	for _, conn := range []*net.UnixConn{g.monitor, g.console, g.pipe} {
		if conn != nil {
			conn.Close()
		}
	}
}

// dialer is how the guest is reached.
func (g *gift) dialer() (dial dialFunc, pipe *transport.Client) {
	if g.pipe == nil {
		return transport.VSOCK{CID: g.fds.cid}.Dial, nil
	}
	pipe = transport.NewClient(g.pipe)
	return pipe.Dial, pipe
}

// noDevice reports that a device does not exist, has no driver, or is not for us.
func noDevice(err error) bool {
	for _, errno := range []syscall.Errno{unix.ENOENT, unix.ENXIO, unix.ENODEV, unix.EACCES, unix.EPERM} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
