package hostpod

import (
	"context"

	monitorclient "github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/taskshim"
)

// monitors are the monitor processes of this host.
type monitors interface {
	launch(ctx context.Context, cfg monitorclient.Config) (monitor, error)
	connect(ctx context.Context, dir string) (monitor, error)
	// cleanup kills a monitor, dead or alive, and its containers, and removes its directory. Idempotent.
	cleanup(ctx context.Context, dir string) error
}

// monitor is the connection to one pod's monitor.
type monitor interface {
	containers
	processes
	terminals
	lifetime
}

type containers interface {
	// Create announces a container, whose bundle is complete; its start calls the runtime.
	Create(ctx context.Context, req monitorclient.CreateRequest) error
	// InitPID is the first process of a running container. FailedPrecondition for one that does not run.
	InitPID(ctx context.Context, container string) (uint32, error)
	// Checkpoint writes the processes of a running container, which goes on, and criu's log into two directories.
	Checkpoint(ctx context.Context, container, images, work string) error
	task.LogReopener
	task.Updater
}

// meter is a monitor that knows better than the host's cgroups what its containers use.
type meter interface {
	Usage(ctx context.Context, container string) (task.ContainerStats, error)
}

// terminals are the optional interfaces of processes that people sit in front of.
type terminals interface {
	task.Attacher
	task.Resizer
}

// processes are those of task.Service but for Create.
type processes interface {
	Exec(ctx context.Context, req task.ExecRequest) error
	Start(ctx context.Context, id task.ID) (pid uint32, err error)
	Signal(ctx context.Context, id task.ID, signal uint32, all bool) error
	Wait(ctx context.Context, id task.ID) (task.Exit, error)
	Delete(ctx context.Context, id task.ID) error
}

// lifetime is the monitor's own.
type lifetime interface {
	PID() int
	// WaitEnd blocks until the monitor has ended and says why.
	WaitEnd(ctx context.Context) (reason string, err error)
	// Shutdown ends the monitor; with force its containers too.
	Shutdown(ctx context.Context, force bool) error
	Close() error
}

// shims are monitors beside containerd shims.
type shims struct{ options taskshim.Options }

func (s shims) launch(ctx context.Context, cfg monitorclient.Config) (monitor, error) {
	p, err := taskshim.Launch(ctx, cfg, s.options)
	if err != nil {
		return nil, err // not a typed nil
	}
	return p, nil
}

func (s shims) connect(ctx context.Context, dir string) (monitor, error) {
	p, err := taskshim.Connect(ctx, dir, s.options)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (s shims) cleanup(ctx context.Context, dir string) error {
	return taskshim.Cleanup(ctx, dir, s.options)
}

// monitorProcesses are the real monitors.
type monitorProcesses struct{}

func (monitorProcesses) launch(ctx context.Context, cfg monitorclient.Config) (monitor, error) {
	c, err := monitorclient.Launch(ctx, cfg)
	if err != nil {
		return nil, err // not a typed nil
	}
	return c, nil
}

func (monitorProcesses) connect(ctx context.Context, dir string) (monitor, error) {
	c, err := monitorclient.Connect(ctx, dir)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (monitorProcesses) cleanup(ctx context.Context, dir string) error {
	return monitorclient.Cleanup(ctx, dir)
}
