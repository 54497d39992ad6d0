package hostpod

import (
	"context"

	"github.com/pistis-run/pistis/internal/task"
)

// monitors are the monitor processes of this host.
type monitors interface {
	launch(ctx context.Context, req launchRequest) (monitor, error)
	connect(ctx context.Context, dir string) (monitor, error)
	// cleanup kills a monitor, dead or alive, and removes its directory. Idempotent.
	cleanup(ctx context.Context, dir string) error
}

type launchRequest struct {
	program, dir string
	runtime      string
	args         []string
	cgroup       string
}

// monitor is the connection to one pod's monitor.
type monitor interface {
	processes
	task.Attacher
	task.Resizer
	task.LogReopener
	task.Updater
	// Register announces a container, whose bundle is complete; its start calls the runtime.
	Register(ctx context.Context, req registerRequest) error
	// InitPID is the first process of a running container. FailedPrecondition for one that does not run.
	InitPID(ctx context.Context, container string) (uint32, error)
	lifetime
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
	// Shutdown ends all containers and the monitor.
	Shutdown(ctx context.Context) error
	Close() error
}

type registerRequest struct {
	id, bundle, logPath        string
	terminal, stdin, stdinOnce bool
}
