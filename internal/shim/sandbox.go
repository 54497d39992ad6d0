package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/shim/limits"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm"
)

const (
	// stopTimeout bounds the stop of a sandbox whose caller gives no time.
	stopTimeout = 10 * time.Second
	// exitUnknown is the code of what ended with its VM.
	exitUnknown = 255

	stateReady    = "SANDBOX_READY"
	stateNotReady = "SANDBOX_NOTREADY"
)

// CreateSandbox takes the description of the VM.
func (s *Service) CreateSandbox(ctx context.Context, r *sandboxv1.CreateSandboxRequest) (*sandboxv1.CreateSandboxResponse, error) {
	if err := s.checkID(r.SandboxId); err != nil {
		return nil, err
	}
	if r.BundlePath != "" && !sameFile(r.BundlePath, string(s.options.Bundle)) {
		return nil, fmt.Errorf("create sandbox %s: the bundle is %s, not %s: %w", r.SandboxId, s.options.Bundle, r.BundlePath, errdefs.ErrInvalidArgument)
	}
	if len(r.Rootfs) > 0 {
		return nil, fmt.Errorf("create sandbox %s: a VM has no root file system of its own beside its containers': %w", r.SandboxId, errdefs.ErrNotImplemented)
	}
	options, err := sandboxOptions(r.Options)
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", r.SandboxId, err)
	}
	request := s.request(options, r.NetnsPath)
	if err := request.Validate(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stepLocked(opCreate); err != nil {
		return nil, err
	}
	s.asked, s.created = request, time.Now()
	return &sandboxv1.CreateSandboxResponse{}, nil
}

// sameFile compares what paths lead to, as either may go through symbolic links.
func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

func sandboxOptions(any *anypb.Any) (*shimv1.SandboxOptions, error) {
	var options shimv1.SandboxOptions
	if any == nil || any.TypeUrl == "" {
		return nil, fmt.Errorf("no options: they must describe the VM as %s: %w", options.ProtoReflect().Descriptor().FullName(), errdefs.ErrInvalidArgument)
	}
	if err := any.UnmarshalTo(&options); err != nil {
		return nil, fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &options, nil
}

func (s *Service) request(o *shimv1.SandboxOptions, netns string) vm.Request {
	return vm.Request{
		ID: s.options.ID, Options: o, NetNS: netns,
		RunDir: s.options.Bundle.RunDir(), ConsoleLog: s.options.Bundle.Console(),
		Driver: s.options.Drivers[o.GetVm().GetHypervisor()], AttachNetwork: s.options.AttachNetwork,
		InspectNetwork: s.options.InspectNetwork, ShareServer: s.options.ShareServer, Prepare: func() error { return s.joinCgroup(o.GetCgroup()) }, Started: s.vmmStarted,
	}
}

// vmmStarted records the VMM before its guest runs, so that it can be found whatever happens to this process. The
// VMM is a child of the shim and so in the pod's cgroup already.
func (s *Service) vmmStarted(pid int) error {
	p, err := bundle.Identify(pid)
	if err != nil {
		return fmt.Errorf("record VMM: %w", err)
	}
	return s.options.Bundle.WriteVMM(p)
}

// StartSandbox boots the VM. After an error the sandbox is over.
func (s *Service) StartSandbox(ctx context.Context, r *sandboxv1.StartSandboxRequest) (*sandboxv1.StartSandboxResponse, error) {
	if err := s.checkID(r.SandboxId); err != nil {
		return nil, err
	}
	ctx, err := s.claimStart(ctx)
	if err != nil {
		return nil, err
	}
	defer s.starting.abort()
	defer close(s.starting.ended)
	if err := s.boot(ctx); err != nil {
		s.over(task.Exit{Code: exitUnknown, At: time.Now(), Reason: err.Error()})
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &sandboxv1.StartSandboxResponse{Pid: uint32(s.vm.PID()), CreatedAt: timestamppb.New(s.created)}, nil
}

// claimStart makes the state starting, and a context that stop can end.
func (s *Service) claimStart(ctx context.Context) (context.Context, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stepLocked(opStart); err != nil {
		return nil, err
	}
	s.starting.ended = make(chan struct{})
	ctx, s.starting.abort = context.WithCancel(ctx)
	return ctx, nil
}

func (s *Service) boot(ctx context.Context) error {
	if err := failpoint.Hit(ctx, "shim.boot"); err != nil {
		return err
	}
	v, err := vm.Boot(ctx, s.asked)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.stepLocked(opStarted); err != nil {
		return err
	}
	s.vm, s.room = v, room{limits: limits.New(func() int { return v.Size().VCPUs }), wanted: v.Size()}
	s.running.Go(func() { s.supervise(v) })
	args := []any{logfields.Sandbox, s.options.ID, logfields.PID, v.PID()}
	for _, p := range v.Phases() {
		args = append(args, p.Name, p.Duration.Round(100*time.Microsecond).String())
	}
	s.options.Log.Info("virtual machine is ready", args...)
	return nil
}

// joinCgroup makes the pod's cgroup and moves the shim into it; what the shim starts is born there.
func (s *Service) joinCgroup(path string) error {
	if path == "" {
		return nil
	}
	self, err := bundle.Identify(os.Getpid())
	if err != nil {
		return err
	}
	group, err := cgroup.Open(path)
	if err != nil {
		return err
	}
	// The record comes first: a group that is recorded and not there does no harm.
	if err := s.options.Bundle.WriteShim(bundle.Shim{Process: self, Cgroup: path}); err != nil {
		return err
	}
	if err := group.Create(); err != nil {
		return err
	}
	s.starting.oomKills = group.OOMKillsAround()
	return group.Add(self.PID)
}

// supervise waits for the VM's end.
func (s *Service) supervise(v *vm.VM) {
	<-v.Done()
	exit := s.vmExit(v)
	s.options.Log.Info("virtual machine has ended", logfields.Sandbox, s.options.ID, logfields.Reason, exit.Reason)
	s.over(exit)
}

// vmExit is how everything in a VM that is done has ended.
func (s *Service) vmExit(v *vm.VM) task.Exit {
	exit := task.Exit{Code: exitUnknown, At: time.Now(), Reason: "the virtual machine ended: " + v.Err().Error()}
	if errors.Is(v.Err(), hypervisor.ErrKilled) && oomKills(s.asked.Options.GetCgroup()) > s.starting.oomKills {
		exit.OOMKilled = true
		exit.Reason = "the host's kernel killed a process of the pod's virtual machine, since the memory of the pod's cgroup was used up: " +
			"raise the pod's memory limit, or the overhead of its RuntimeClass: " + exit.Reason
	}
	return exit
}

// oomKills is how many processes the host's kernel has killed for want of memory in a cgroup, or in what it is a part of.
func oomKills(path string) uint64 {
	if path == "" {
		return 0
	}
	group, err := cgroup.Open(path)
	if err != nil {
		return 0
	}
	return group.OOMKillsAround()
}

// over ends the sandbox, once.
func (s *Service) over(exit task.Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stepLocked(opExit) != nil {
		return
	}
	s.exit = exit
	close(s.ended)
}

// StopSandbox ends the VM. It is idempotent.
func (s *Service) StopSandbox(ctx context.Context, r *sandboxv1.StopSandboxRequest) (*sandboxv1.StopSandboxResponse, error) {
	if err := s.checkID(r.SandboxId); err != nil {
		return nil, err
	}
	timeout := time.Duration(r.TimeoutSecs) * time.Second
	if timeout == 0 {
		timeout = stopTimeout
	}
	// The stop goes on when the caller has gone; only the time that it gave counts.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	return &sandboxv1.StopSandboxResponse{}, s.stop(ctx)
}

// stop takes the sandbox down from whatever state it is in.
func (s *Service) stop(ctx context.Context) error {
	v, err := s.claimStop(ctx)
	if err != nil {
		return err
	}
	if v == nil {
		s.over(task.Exit{Code: 0, At: time.Now(), Reason: "the sandbox was stopped before it was started"})
		return nil
	}
	if err := v.Stop(ctx); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", s.options.ID, err)
	}
	<-s.ended
	return nil
}

// claimStop makes the state stopping, unless it is stopped, and returns the VM, if there is one. A start that is
// under way is cut short and waited for.
func (s *Service) claimStop(ctx context.Context) (*vm.VM, error) {
	for {
		s.mu.Lock()
		if s.state != sandboxStarting {
			defer s.mu.Unlock()
			if s.state == sandboxStopped || s.state == sandboxStopping {
				return s.vm, nil
			}
			return s.vm, s.stepLocked(opStop)
		}
		s.starting.abort()
		started := s.starting.ended
		s.mu.Unlock()
		select {
		case <-started:
		case <-ctx.Done():
			return nil, fmt.Errorf("stop sandbox %s: its start does not end: %w", s.options.ID, ctx.Err())
		}
	}
}

// WaitSandbox blocks until the sandbox is over.
func (s *Service) WaitSandbox(ctx context.Context, r *sandboxv1.WaitSandboxRequest) (*sandboxv1.WaitSandboxResponse, error) {
	if err := s.checkID(r.SandboxId); err != nil {
		return nil, err
	}
	select {
	case <-s.ended:
		return &sandboxv1.WaitSandboxResponse{ExitStatus: s.exit.Code, ExitedAt: timestamppb.New(s.exit.At)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// SandboxStatus tells the state; verbose adds what the VM is.
func (s *Service) SandboxStatus(ctx context.Context, r *sandboxv1.SandboxStatusRequest) (*sandboxv1.SandboxStatusResponse, error) {
	if err := s.checkID(r.SandboxId); err != nil {
		return nil, err
	}
	s.mu.Lock()
	answer := &sandboxv1.SandboxStatusResponse{SandboxId: s.options.ID, State: stateNotReady}
	if s.state == sandboxReady {
		answer.State = stateReady
	}
	if s.vm != nil {
		answer.Pid = uint32(s.vm.PID())
	}
	if !s.created.IsZero() {
		answer.CreatedAt = timestamppb.New(s.created)
	}
	if s.state == sandboxStopped {
		answer.ExitedAt = timestamppb.New(s.exit.At)
	}
	s.mu.Unlock()
	if r.Verbose {
		answer.Info = s.verbose()
	}
	return answer, nil
}

func (s *Service) verbose() map[string]string {
	m := s.describe()
	info := map[string]string{"shimPid": strconv.Itoa(os.Getpid())}
	if m == nil {
		return info
	}
	info["hypervisor"], info["acceleration"] = strings.TrimSpace(m.Hypervisor+" "+m.Version), m.Acceleration
	info["vmmPid"], info["kernel"] = strconv.Itoa(int(m.VmmPid)), m.Kernel
	for _, p := range m.Phases {
		info["phase."+p.Name] = p.Duration.AsDuration().String()
	}
	if m.Exit != "" {
		info["exit"] = m.Exit
	}
	return info
}

// PingSandbox answers while the shim lives.
func (s *Service) PingSandbox(_ context.Context, r *sandboxv1.PingRequest) (*sandboxv1.PingResponse, error) {
	return &sandboxv1.PingResponse{}, s.checkID(r.SandboxId)
}

// Platform is that of the host: guests are of its architecture.
func (s *Service) Platform(_ context.Context, r *sandboxv1.PlatformRequest) (*sandboxv1.PlatformResponse, error) {
	return &sandboxv1.PlatformResponse{Platform: &sandboxv1.Platform{Os: "linux", Architecture: runtime.GOARCH}}, s.checkID(r.SandboxId)
}

// ShutdownSandbox stops the VM and ends the shim after the answer.
func (s *Service) ShutdownSandbox(ctx context.Context, r *sandboxv1.ShutdownSandboxRequest) (*sandboxv1.ShutdownSandboxResponse, error) {
	if err := s.checkID(r.SandboxId); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := s.stop(ctx); err != nil {
		return nil, err
	}
	s.shutdown()
	return &sandboxv1.ShutdownSandboxResponse{}, nil
}

// shutdown tells whoever runs the service to end.
func (s *Service) shutdown() { s.quitOnce.Do(func() { close(s.quit) }) }
