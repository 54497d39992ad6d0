package firecracker

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

const (
	// startTimeout bounds Firecracker's own start, until its API answers.
	startTimeout = 30 * time.Second
	// connectInterval is the pause between two attempts to connect to it: it gives no event for that.
	connectInterval = 2 * time.Millisecond
)

// Start starts Firecracker, describes the machine to it, calls cfg.Started and starts the guest.
func (d Driver) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	v, err := d.start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start Firecracker: %w", err)
	}
	return v, nil
}

func (d Driver) start(ctx context.Context, cfg hypervisor.Config) (*vm, error) {
	if err := check(cfg); err != nil {
		return nil, err
	}
	path, err := program.Lookup(cfg.Binary)
	if err != nil {
		return nil, err
	}
	version, err := program.Version(ctx, path)
	if err != nil {
		return nil, err
	}
	can := abilitiesOf(version)
	can.plug = can.plug && !d.mmio
	if !can.memory {
		if cfg.Reclaim {
			return nil, fmt.Errorf("Firecracker %s gives no memory back, 1.14 or later does: unset vm.reclaim: %w", version, errdefs.ErrFailedPrecondition)
		}
		cfg.MaxMemory = 0
	}
	if !vmm.AtLeast(version, 1, 16) { // it would not know the field; guests set their own
		cfg.NICs = slices.Clone(cfg.NICs)
		for i := range cfg.NICs {
			cfg.NICs[i].MTU = 0
		}
	}
	s := &starter{Kit: vmm.NewKit(cfg, "kvm", "net/tun"), cfg: cfg, can: can}
	proc, err := s.process(path)
	if err != nil {
		s.Failed()
		return nil, err
	}
	s.Started()
	v := newVM(cfg, proc, s)
	if err := v.boot(ctx, cfg, s.taps); err != nil {
		return nil, v.Abort(err)
	}
	return v, nil
}

// starter gathers what a Firecracker starts with.
type starter struct {
	*vmm.Kit
	cfg  hypervisor.Config
	can  abilities
	taps []string
	// log and metrics are what Firecracker says.
	log, metrics pipe
}

// pipe is one with a name, which Firecracker opens. writer keeps reader from ending before Firecracker has begun.
type pipe struct{ reader, writer *os.File }

// process starts Firecracker in its jail.
func (s *starter) process(path string) (*vmm.Process, error) {
	kernel, err := s.Image(kernelFile, "kernel", s.cfg.Kernel)
	if err != nil {
		return nil, err
	}
	if err := checkKernel(kernel); err != nil {
		return nil, err
	}
	if s.cfg.Initrd != "" {
		if _, err := s.Image(initrdFile, "initrd", s.cfg.Initrd); err != nil {
			return nil, err
		}
	}
	rules, err := filter(path)
	if err != nil {
		return nil, fmt.Errorf("filter of system calls: %w: %w", err, vmm.ErrorClass(err))
	}
	if rules != "" {
		if _, err := s.Image(filterName, "VMM's filter of system calls", rules); err != nil {
			return nil, err
		}
	}
	if s.can.memory {
		if err := s.CommonMemory(transport.MemorySize); err != nil {
			return nil, err
		}
	}
	if s.Jail.NetNS, err = s.giveTaps(); err != nil {
		return nil, err
	}
	if err := s.makeEmpty(); err != nil {
		return nil, fmt.Errorf("empty disk: %w: %w", err, vmm.ErrorClass(err))
	}
	if s.log, err = s.openPipe(logPipe); err != nil {
		return nil, fmt.Errorf("log: %w: %w", err, vmm.ErrorClass(err))
	}
	if s.metrics, err = s.openPipe(metricsPipe); err != nil {
		return nil, fmt.Errorf("metrics: %w: %w", err, vmm.ErrorClass(err))
	}
	console, err := s.ConsolePipe()
	if err != nil {
		return nil, err
	}
	return vmm.Start(vmm.Command{
		Name: "Firecracker", Path: path, Args: arguments(s.cfg, s.can, rules != ""), Stdout: console, User: s.cfg.User, Jail: s.Jail,
	})
}

// checkKernel: Firecracker boots what is uncompressed.
func checkKernel(f *os.File) error {
	magic := make([]byte, len(elf.ELFMAG))
	if _, err := f.ReadAt(magic, 0); err != nil || !bytes.Equal(magic, []byte(elf.ELFMAG)) {
		return fmt.Errorf("the guest's kernel %s is not a vmlinux, and Firecracker boots nothing else: %w", f.Name(), errdefs.ErrInvalidArgument)
	}
	return nil
}

// makeEmpty makes the image of no disk: one sector.
func (s *starter) makeEmpty() error {
	path := filepath.Join(s.cfg.RunDir, emptyImage)
	if err := os.WriteFile(path, make([]byte, 512), 0o600); err != nil {
		return err
	}
	if s.cfg.User == nil {
		return nil
	}
	return os.Chown(path, int(s.cfg.User.UID), int(s.cfg.User.GID))
}

// openPipe makes a pipe that Firecracker writes to.
func (s *starter) openPipe(name string) (p pipe, err error) {
	path := filepath.Join(s.cfg.RunDir, name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return p, &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	if p.reader, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
		return p, err
	}
	s.Keep(p.reader)
	if p.writer, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
		return p, err
	}
	s.Keep(p.writer)
	if s.cfg.User == nil {
		return p, nil
	}
	return p, os.Chown(path, int(s.cfg.User.UID), int(s.cfg.User.GID))
}

// giveTaps makes the taps openable for Firecracker, which takes them by name, and closes ours: only one may have them
// open. They stay, with their network namespace, after Firecracker. The namespace is nil for a VM without cards.
func (s *starter) giveTaps() (*os.File, error) {
	var ns *os.File
	for _, nic := range s.cfg.NICs {
		name, tapNS, err := giveTap(nic.Tap, s.cfg.User)
		if err != nil {
			return nil, fmt.Errorf("network card %s: %w: %w", nic.ID, err, vmm.ErrorClass(err))
		}
		s.Lend(tapNS)
		s.taps, ns = append(s.taps, name), tapNS
	}
	return ns, nil
}

func giveTap(tap *os.File, user *hypervisor.User) (name string, ns *os.File, err error) {
	fd := int(tap.Fd())
	request, err := unix.NewIfreq("")
	if err != nil {
		return "", nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, request); err != nil {
		return "", nil, os.NewSyscallError("TUNGETIFF", err)
	}
	nsFD, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return "", nil, os.NewSyscallError("SIOCGSKNS", err)
	}
	ns = os.NewFile(uintptr(nsFD), "netns")
	if user != nil {
		err = os.NewSyscallError("TUNSETOWNER", unix.IoctlSetInt(fd, unix.TUNSETOWNER, int(user.UID)))
	}
	if err == nil {
		err = os.NewSyscallError("TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
	}
	if err == nil {
		err = tap.Close()
	}
	if err != nil {
		return "", nil, errors.Join(err, ns.Close())
	}
	return request.Name(), ns, nil
}

// boot runs between the process's start and the first instruction of the guest.
func (v *vm) boot(ctx context.Context, cfg hypervisor.Config, taps []string) error {
	if cfg.Started != nil {
		if err := cfg.Started(v.PID()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("Firecracker does not answer within %v: %w", startTimeout, context.DeadlineExceeded))
	defer cancel()
	if err := v.connect(ctx, filepath.Join(cfg.RunDir, apiSocket)); err != nil {
		return err
	}
	// It has opened all of these. Nobody else shall.
	for _, name := range []string{apiSocket, logPipe, metricsPipe} {
		if err := os.Remove(filepath.Join(cfg.RunDir, name)); err != nil {
			return err
		}
	}
	for _, r := range description(cfg, v.can, taps) {
		if _, err := v.do(ctx, "PUT", r.path, r.body); err != nil {
			if r.path == templatePath {
				err = fmt.Errorf("CPU template (firecracker.cpu_template): %w", err)
			}
			return err
		}
	}
	for _, p := range v.drives.placeholders() {
		r := placeholderRequest(p, v.cfg.DiskRate)
		if _, err := v.do(ctx, "PUT", r.path, r.body); err != nil {
			return err
		}
	}
	// A disk of the start is as any other: plugged, or given to a placeholder, which has it before the guest sees it.
	if !v.can.plug {
		if err := v.attachAll(ctx, cfg.Disks); err != nil {
			return err
		}
	}
	if _, err := v.do(ctx, "PUT", "/actions", map[string]string{"action_type": "InstanceStart"}); err != nil {
		return err
	}
	v.running = true
	if err := v.Confined(false); err != nil {
		return fmt.Errorf("%w; it was built without one (as builds for GNU's C library are): use a release of the project, or put a compiled filter where it is looked for, at %s from the program",
			err, filterFile)
	}
	if v.can.plug {
		return v.attachAll(ctx, cfg.Disks)
	}
	return nil
}

func (v *vm) attachAll(ctx context.Context, disks []hypervisor.Disk) error {
	for _, d := range disks {
		if _, err := v.AttachDisk(ctx, d); err != nil {
			return err
		}
	}
	return nil
}

// connect waits for Firecracker's API and connects to it.
func (v *vm) connect(ctx context.Context, path string) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-v.Process.Done():
			return fmt.Errorf("it has ended: %w", errdefs.ErrUnavailable)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
		if err == nil {
			v.mu.Lock()
			v.api = vmm.NewAPI("Firecracker", conn)
			v.mu.Unlock()
			return nil
		}
		if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("API socket: %w: %w", err, vmm.ErrorClass(err))
		}
		timer.Reset(connectInterval)
	}
}
