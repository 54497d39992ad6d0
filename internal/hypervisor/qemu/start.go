package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu/qmp"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

const (
	// startTimeout bounds QEMU's own start, until its monitor answers.
	startTimeout = 30 * time.Second
	// tcgWarning is in a line for every feature that emulation leaves out, whatever becomes of the guest.
	tcgWarning = "TCG doesn't support requested feature"
	// noMemoryDevice is what a QEMU says that was built without the device for memory in common.
	noMemoryDevice = "'" + memoryDriver + "' is not a valid device model name"
)

// Start starts QEMU with the guest's processors stopped, calls cfg.Started, and lets them run. A QEMU that was built without the
// device for memory in common with the host is started again without it, and cfg.Started called again.
func (d Driver) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	v, err := d.start(ctx, cfg, true)
	if err != nil && strings.Contains(err.Error(), noMemoryDevice) {
		v, err = d.start(ctx, cfg, false)
	}
	if err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	return v, nil
}

func (d Driver) start(ctx context.Context, cfg hypervisor.Config, common bool) (*vm, error) {
	if err := cfg.Validate(d.Capabilities()); err != nil {
		return nil, err
	}
	if err := vmm.CheckDisks(cfg.Disks); err != nil {
		return nil, err
	}
	if err := vmm.CheckNICs(cfg.NICs); err != nil {
		return nil, err
	}
	path, err := program.Lookup(cfg.Binary)
	if err != nil {
		return nil, err
	}
	if !grows(cfg.Machine) {
		cfg.MaxVCPUs, cfg.MaxMemory = 0, 0
	}
	gift, err := prepare(cfg, common && grows(cfg.Machine))
	if err != nil {
		return nil, err
	}
	proc, err := vmm.Start(vmm.Command{
		Name: "QEMU", Path: path, Args: commandLine(cfg, gift.fds), Files: gift.files,
		User: cfg.User, Groups: vmm.KVMGroup(), Noise: tcgWarning,
	})
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

// abort ends a QEMU that could not be started and returns why.
func (v *vm) abort(cause error) error {
	err := v.Abort(cause)
	if monitor := v.currentMonitor(); monitor != nil {
		monitor.Close() // it may have been set after QEMU was reaped
	}
	return err
}

// gift is what a QEMU inherits, and the ends of its sockets that stay here.
type gift struct {
	files []*os.File // become descriptors from vmm.FirstFD on
	fds   descriptors
	owned []io.Closer // of files, those to close after the fork

	monitor, console, pipe *net.UnixConn // pipe is nil with vsock
	memory                 *os.File      // what host and guest have in common, or nil
}

// prepare opens all that QEMU needs, with memory in common with the host or without. On error nothing is left open.
func prepare(cfg hypervisor.Config, common bool) (*gift, error) {
	g := &gift{}
	if err := g.open(cfg, common); err != nil {
		g.closeOwned()
		g.closeOurs()
		return nil, err
	}
	return g, nil
}

func (g *gift) open(cfg hypervisor.Config, common bool) (err error) {
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
	if common {
		if g.memory, err = vmm.CommonMemory(transport.MemorySize); err != nil {
			return err
		}
		g.fds.memory = g.lend(g.memory)
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
	return vmm.FirstFD + len(g.files) - 1
}

// own passes a file and closes it here after the fork.
func (g *gift) own(f *os.File) int {
	g.owned = append(g.owned, f)
	return g.lend(f)
}

// path passes a file that QEMU opens again, through /proc, with its own identity.
func (g *gift) path(what, path string, user *hypervisor.User) (int, error) {
	f, err := vmm.OpenImage(what, path, user)
	if err != nil {
		return 0, err
	}
	return g.own(f), nil
}

// socket makes a pair and passes one end.
func (g *gift) socket() (*net.UnixConn, int, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("socketpair: %w: %w", err, vmm.ErrorClass(err))
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
			return fmt.Errorf("vhost-net: %w: %w", err, vmm.ErrorClass(err))
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
	if g.memory != nil {
		g.memory.Close()
	}
}

// dialer is how the guest is reached.
func (g *gift) dialer() (dial vmm.DialFunc, pipe *transport.Client) {
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
