package shim

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/network/tap"
	"github.com/pistis-run/pistis/internal/shim/limits"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm"
)

// Options of a shim.
type Options struct {
	// ID of the sandbox; Namespace is containerd's.
	ID, Namespace string
	// Bundle is the sandbox's directory.
	Bundle bundle.Dir
	// Drivers by name.
	Drivers map[string]hypervisor.Driver
	// AttachNetwork connects a network namespace to taps, InspectNetwork tells of its other settings.
	AttachNetwork  func(ctx context.Context, netns string) ([]tap.NIC, error)
	InspectNetwork func(ctx context.Context, netns string) (tap.Report, error)
	// GuestSpec rebuilds a container's spec for the guest, GuestResources its limits.
	GuestSpec      func(*specs.Spec) (*specs.Spec, error)
	GuestResources func(*specs.LinuxResources) (*specs.LinuxResources, error)
	// ShareServer is the command that serves volumes, as share.Start takes it.
	ShareServer []string
	// TTRPCAddress is containerd's; empty publishes no events.
	TTRPCAddress string
	Log          *slog.Logger
}

// Service is one sandbox with its tasks.
type Service struct {
	options Options
	events  *publisher
	// quit is closed when the shim shall end.
	quit     chan struct{}
	quitOnce sync.Once
	// running are the goroutines of the VM and its processes.
	running sync.WaitGroup
	// ended is closed when the sandbox is over, whatever the reason; exit is set before.
	ended chan struct{}

	mu         sync.Mutex
	state      sandboxState
	asked      vm.Request // from the sandbox's creation on
	vm         *vm.VM
	room       // set with vm
	exit       task.Exit
	created    time.Time
	starting   startup
	containers map[string]*container
}

// room is what decides on the VM's size.
type room struct {
	limits *limits.Pod // of its containers
	wanted vm.Size     // by its maker; for whoever has the limits' turn
}

// startup of a sandbox, under way or over.
type startup struct {
	abort context.CancelFunc
	ended chan struct{} // closed when it has ended, well or not
	// oomKills is how many processes had been killed for want of memory before the VM's first.
	oomKills uint64
}

// New makes the service of a sandbox that is not there yet.
func New(o Options) *Service {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{
		options: o, events: newPublisher(o.TTRPCAddress, o.Namespace, o.Log),
		quit: make(chan struct{}), ended: make(chan struct{}),
		state: sandboxNew, containers: map[string]*container{},
	}
}

// Quit is closed when the shim was told to end.
func (s *Service) Quit() <-chan struct{} { return s.quit }

// Close stops what runs and joins every goroutine. ctx bounds the polite part.
func (s *Service) Close(ctx context.Context) error {
	err := s.stop(ctx)
	s.running.Wait()
	s.events.close(ctx)
	return err
}

// stepLocked changes the sandbox's state; the refusal names the sandbox.
func (s *Service) stepLocked(op operation) error {
	next, err := sandboxTable().Next(s.state, op)
	if err != nil {
		return fmt.Errorf("sandbox %s: %w", s.options.ID, err)
	}
	s.state = next
	return nil
}

// checkID refuses requests that were meant for somebody else.
func (s *Service) checkID(id string) error {
	if id != s.options.ID {
		return fmt.Errorf("sandbox %s: this shim serves sandbox %s: %w", id, s.options.ID, errdefs.ErrNotFound)
	}
	return nil
}

// machine returns the VM while the sandbox is ready.
func (s *Service) machine() (*vm.VM, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == sandboxStopped && s.exit.Reason != "" {
		return nil, fmt.Errorf("sandbox %s: %s: %w", s.options.ID, s.exit.Reason, errdefs.ErrFailedPrecondition)
	}
	if err := s.stepLocked(opUse); err != nil {
		return nil, err
	}
	return s.vm, nil
}

// container finds a container.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

// process finds a container's own process (exec empty) or one of its execs.
func (s *Service) process(id, exec string) (*container, *process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.lookup(exec)
	return c, p, err
}

// use finds a container that lives, and its VM.
func (s *Service) use(id string) (*container, *vm.VM, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	if err := c.step(opUse); err != nil {
		return nil, nil, err
	}
	v, err := s.machine()
	return c, v, err
}
