package cloudhypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/transport"
)

// startTimeout bounds Cloud Hypervisor's own start, until the guest runs.
const startTimeout = 30 * time.Second

// apiPrefix is before all of its paths.
const apiPrefix = "/api/v1/"

// Start starts Cloud Hypervisor, describes the machine to it, calls cfg.Started and boots the guest.
func (d Driver) Start(ctx context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	v, err := start(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start Cloud Hypervisor: %w", err)
	}
	return v, nil
}

func start(ctx context.Context, cfg hypervisor.Config) (*vm, error) {
	if err := check(cfg); err != nil {
		return nil, err
	}
	path, err := program.Lookup(cfg.Binary)
	if err != nil {
		return nil, err
	}
	if _, err := program.Version(ctx, path); err != nil {
		return nil, err
	}
	s := &starter{Kit: vmm.NewKit(cfg, "kvm", "null", "urandom"), cfg: cfg}
	proc, err := s.process(path)
	if err != nil {
		s.Failed()
		return nil, err
	}
	s.Started()
	v := newVM(cfg, proc, s)
	if err := v.boot(ctx, cfg); err != nil {
		return nil, v.Abort(err)
	}
	return v, nil
}

// starter gathers what a Cloud Hypervisor starts with; api and events are this side's ends.
type starter struct {
	*vmm.Kit
	cfg    hypervisor.Config
	api    *net.UnixConn
	events *os.File
}

// process starts Cloud Hypervisor in its jail.
func (s *starter) process(path string) (*vmm.Process, error) {
	if _, err := s.Image(kernelFile, "kernel", s.cfg.Kernel); err != nil {
		return nil, err
	}
	if s.cfg.Initrd != "" {
		if _, err := s.Image(initrdFile, "initrd", s.cfg.Initrd); err != nil {
			return nil, err
		}
	}
	if err := s.CommonMemory(transport.MemorySize); err != nil {
		return nil, err
	}
	listener, err := s.connect()
	if err != nil {
		return nil, fmt.Errorf("API: %w: %w", err, vmm.ErrorClass(err))
	}
	events, theirs, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("events: %w: %w", err, vmm.ErrorClass(err))
	}
	s.events = events
	s.Keep(events)
	s.Lend(theirs)
	console, err := s.ConsolePipe()
	if err != nil {
		return nil, err
	}
	return vmm.Start(vmm.Command{
		Name: "Cloud Hypervisor", Path: path, Stdout: console, User: s.cfg.User, Jail: s.Jail,
		Args:  []string{"--api-socket", "fd=" + strconv.Itoa(apiFD), "--event-monitor", "fd=" + strconv.Itoa(eventFD), "--seccomp", "true"},
		Files: []*os.File{listener, theirs},
	})
}

// connect makes the socket that Cloud Hypervisor will listen on and connects to it, which the kernel allows before
// anybody accepts; it has no name when that is done.
func (s *starter) connect() (*os.File, error) {
	path := filepath.Join(s.cfg.RunDir, "api.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	defer l.Close() // which removes the name
	listener, err := l.File()
	if err != nil {
		return nil, err
	}
	s.Lend(listener)
	if s.api, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		return nil, err
	}
	s.Keep(s.api)
	return listener, nil
}

// boot runs between the process's start and the first instruction of the guest.
func (v *vm) boot(ctx context.Context, cfg hypervisor.Config) error {
	if cfg.Started != nil {
		if err := cfg.Started(v.PID()); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("Cloud Hypervisor does not answer within %v: %w", startTimeout, context.DeadlineExceeded))
	defer cancel()
	if err := v.do(ctx, "vm.create", description(cfg, hasLandlock())); err != nil {
		return err
	}
	for _, n := range cfg.NICs {
		if err := v.do(ctx, "vm.add-net", nicRequest(n), n.Tap); err != nil {
			return fmt.Errorf("network card %s: %w", n.ID, err)
		}
	}
	for _, d := range cfg.Disks {
		if _, err := v.AttachDisk(ctx, d); err != nil {
			return err
		}
	}
	if err := v.do(ctx, "vm.boot", nil); err != nil {
		return err
	}
	return v.Confined(true)
}

// hasLandlock asks the kernel for the version of its Landlock.
func hasLandlock() bool {
	const version = 1 // LANDLOCK_CREATE_RULESET_VERSION
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, version)
	return errno == 0 && n > 0
}

var errReset = errors.New("the guest reset itself, as a kernel does that panics")
