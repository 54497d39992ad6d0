package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	cgroupstats "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pistis-run/pistis/internal/steps"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/version"
)

const (
	// attachTimeout is how long the start of an exec waits for the client that carries its stdio.
	attachTimeout = 15 * time.Second
	// exitNotStarted is the code of a process that could not be started, as runc's users expect it.
	exitNotStarted = 128
)

// Start starts a container or an exec. When it fails the process has ended, with the reason.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	v, err := s.machine()
	if err != nil {
		return nil, err
	}
	if err := p.step(opStart); err != nil {
		return nil, err
	}
	// From here on the process ends somehow, and whoever waits for the start may go on.
	defer p.settle()
	if err := awaitClient(ctx, p, v.Done()); err != nil {
		s.failStart(p, err)
		return nil, err
	}
	// A caller that goes away must not leave it open whether the process runs.
	ctx = context.WithoutCancel(ctx)
	pid, err := v.Agent().Start(ctx, p.id)
	if errors.Is(err, context.DeadlineExceeded) {
		// The guest may have started it all the same.
		err = errors.Join(err, v.Agent().Signal(ctx, p.id, uint32(unix.SIGKILL), true))
	}
	if err != nil {
		s.failStart(p, err)
		return nil, err
	}
	// An exit that came meanwhile waits for settle; only the VM's end does not.
	if p.step(opStarted, func() { p.pid = pid }) != nil {
		_, _, exit := p.snapshot()
		return nil, fmt.Errorf("%s ended while it was being started: %s: %w", p.name(), exit.Reason, errdefs.ErrUnavailable)
	}
	s.events.taskStart(p)
	return &taskapi.StartResponse{Pid: pid}, nil
}

// awaitClient waits for the attach stream of an exec that was asked for one.
func awaitClient(ctx context.Context, p *process, died <-chan struct{}) error {
	if p.io.client == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	_, end := steps.Start(ctx, "client of the streams")
	defer end()
	select {
	case <-p.io.client.joined:
		return nil
	case <-died:
		return fmt.Errorf("%s: the virtual machine ended: %w", p.name(), errdefs.ErrUnavailable)
	case <-ctx.Done():
		return fmt.Errorf("%s: nobody attached to its stdio: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
}

// failStart ends a process that could not be started. The agent's own report of it changes nothing any more.
func (s *Service) failStart(p *process, err error) {
	p.io.close()
	if p.finish(task.Exit{Code: exitNotStarted, At: time.Now(), Reason: err.Error()}) {
		s.events.taskExit(p)
	}
}

// Wait blocks until the process has ended and its output was drained.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
		_, _, exit := p.snapshot()
		return &taskapi.WaitResponse{ExitStatus: exit.Code, ExitedAt: timestamp(exit.At)}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Kill sends a signal, to an exec once it is there: whoever gives up its start wants its end. NotFound for a process that has
// ended.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) error {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return err
	}
	if state, _, _ := p.snapshot(); state == processStarting && r.ExecID != "" {
		select {
		case <-p.settled:
		case <-ctx.Done():
			return fmt.Errorf("%s: its start does not end: %w", p.name(), ctx.Err())
		}
	}
	if err := p.step(opSignal); err != nil {
		return err
	}
	v, err := s.machine()
	if err != nil {
		return err
	}
	return v.Agent().Signal(ctx, p.id, r.Signal, r.All)
}

// State tells a process's state.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	state, pid, exit := p.snapshot()
	return &taskapi.StateResponse{
		ID: r.ID, ExecID: r.ExecID, Bundle: c.bundle, Pid: pid, Status: taskStatus(state), Terminal: p.terminal,
		Stdin: p.paths.in, Stdout: p.paths.out, Stderr: p.paths.err, ExitStatus: exit.Code, ExitedAt: timestamp(exit.At),
	}, nil
}

func taskStatus(s processState) tasktypes.Status {
	switch s {
	case processCreated, processStarting:
		return tasktypes.Status_CREATED
	case processRunning:
		return tasktypes.Status_RUNNING
	case processPaused:
		return tasktypes.Status_PAUSED
	case processStopped, processDeleting:
		return tasktypes.Status_STOPPED
	}
	return tasktypes.Status_UNKNOWN
}

// timestamp is nil for no time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Pids lists the processes of a container; the pids are the guest's.
func (s *Service) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, v, err := s.use(r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := v.Agent().Pids(ctx, c.id.Container)
	if err != nil {
		return nil, err
	}
	answer := &taskapi.PidsResponse{}
	for _, p := range pids {
		answer.Processes = append(answer.Processes, &tasktypes.ProcessInfo{Pid: p.Pid})
	}
	return answer, nil
}

// Pause freezes a container, Resume thaws it.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) error {
	c, v, err := s.use(r.ID)
	if err != nil {
		return err
	}
	if err := c.check(opPause); err != nil {
		return err
	}
	if err := v.Agent().Pause(ctx, r.ID); err != nil {
		return err
	}
	if err := c.step(opPause); err != nil {
		return err
	}
	s.events.taskPaused(r.ID)
	return nil
}

// Resume thaws a paused container.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) error {
	c, v, err := s.use(r.ID)
	if err != nil {
		return err
	}
	if err := c.check(opResume); err != nil {
		return err
	}
	if err := v.Agent().Resume(ctx, r.ID); err != nil {
		return err
	}
	if err := c.step(opResume); err != nil {
		return err
	}
	s.events.taskResumed(r.ID)
	return nil
}

// Checkpoint is not possible: a process in a guest cannot be frozen into files of the host.
func (s *Service) Checkpoint(_ context.Context, r *taskapi.CheckpointTaskRequest) error {
	return fmt.Errorf("checkpoint container %s: not possible in a VM: %w", r.ID, errdefs.ErrNotImplemented)
}

// ResizePty sets the size of a terminal.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) error {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return err
	}
	if !p.terminal {
		return fmt.Errorf("resize: %s has no terminal: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
	if err := p.step(opUse); err != nil {
		return err
	}
	v, err := s.machine()
	if err != nil {
		return err
	}
	return v.Agent().ResizeTerminal(ctx, p.id, r.Width, r.Height)
}

// CloseIO ends the input of a process.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) error {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return err
	}
	if err := p.check(opUse); err != nil {
		return nil // its input has ended with it
	}
	if r.Stdin {
		p.io.closeInput()
	}
	return nil
}

// TaskStats answers with the metrics of a cgroup v2, which a guest has.
func (s *Service) TaskStats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	_, v, err := s.use(r.ID)
	if err != nil {
		return nil, err
	}
	stats, err := v.Agent().Stats(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	for _, c := range stats.Containers {
		if c.ID == r.ID {
			return metrics(c)
		}
	}
	return nil, fmt.Errorf("statistics of container %s: the guest knows none: %w", r.ID, errdefs.ErrUnavailable)
}

func metrics(c task.ContainerStats) (*taskapi.StatsResponse, error) {
	m := &cgroupstats.Metrics{
		CPU: &cgroupstats.CPUStat{UsageUsec: c.CPU.UsageNS / 1000},
		Memory: &cgroupstats.MemoryStat{
			Usage: c.Memory.Usage, Anon: c.Memory.RSS, SwapUsage: c.Memory.Swap,
			InactiveFile: c.Memory.Usage - min(c.Memory.Usage, c.Memory.WorkingSet),
			Pgfault:      c.Memory.PageFaults, Pgmajfault: c.Memory.MajorPageFaults,
		},
		Pids: &cgroupstats.PidsStat{Current: c.Pids, Limit: c.PidsLimit},
	}
	if d := c.CPU.Detail; d != nil {
		m.CPU.UserUsec, m.CPU.SystemUsec = d.UserNS/1000, d.SystemNS/1000
		if t := d.Throttling; t != nil {
			m.CPU.NrPeriods, m.CPU.NrThrottled, m.CPU.ThrottledUsec = t.Periods, t.Throttled, t.ThrottledNS/1000
		}
	}
	if d := c.Memory.Detail; d != nil {
		m.Memory.File, m.Memory.FileMapped, m.Memory.ActiveFile, m.Memory.InactiveFile = d.Cache, d.MappedFile, d.ActiveFile, d.InactiveFile
	}
	data, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: data}}, nil
}

// Connect tells who serves a task.
func (s *Service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	answer := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: version.Version}
	if c, err := s.container(r.ID); err == nil {
		_, answer.TaskPid, _ = c.snapshot()
	}
	return answer, nil
}

// Shutdown ends the shim when there is nothing left that it serves. A sandbox that runs is ended by
// ShutdownSandbox only: containerd calls Shutdown after the last container too.
func (s *Service) Shutdown(_ context.Context, r *taskapi.ShutdownRequest) error {
	s.mu.Lock()
	busy := s.state != sandboxStopped && s.state != sandboxNew || len(s.containers) > 0
	s.mu.Unlock()
	if r.Now || !busy {
		s.shutdown()
	}
	return nil
}
