package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/cgroup"
	"github.com/pistis-run/pistis/internal/cleanup"
)

// Descriptors that a monitor is started with. On its standard input comes one byte once it is recorded; without it the
// monitor ends at once, as nobody would find it.
const (
	LockFD   = 3
	SocketFD = 4
)

const (
	binaryName = "pistis-monitor"
	// path is what runtimes look for their helpers in. A monitor gets no other variable of the daemon's environment.
	path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// deleteTimeout bounds the removal of one container by the runtime.
	deleteTimeout = 60 * time.Second
	// maxText is how much of what a runtime says an error shows.
	maxText = 2 << 10
)

// frugal are settings of the Go runtime for a process that has little to do and of which there are many: the caches of one
// processor, however many the machine has, no profiling, and a first collection at 800 KB of garbage, which a pod without
// execs never comes to. They are in the environment because some of it is allocated before the first statement.
func frugal() []string { return []string{"GOMAXPROCS=1", "GODEBUG=memprofilerate=0", "GOGC=20"} }

// Config describes a monitor to launch.
type Config struct {
	// Binary is the monitor's path; empty looks for it on PATH.
	Binary string
	// Dir is its bundle, absolute. Launch makes it; it must not be there.
	Dir string
	// Runtime is the OCI runtime's path, RuntimeArgs its arguments before every command, as --root. Empty: all containers
	// are external.
	Runtime     string
	RuntimeArgs []string
	// Cgroup is a group for this monitor alone, relative to the root of each hierarchy. Launch makes it, Cleanup kills
	// what is in it and removes it. Empty leaves the monitor in the caller's.
	Cgroup string
	// Adopt, where set, makes the group that Cgroup is in, with the process in it, where that is not for just anybody to do.
	Adopt func(pid int) error `json:"-"`
	// Debug makes the monitor log more.
	Debug bool
}

// Launch starts a monitor. ctx bounds the start, not the monitor. On error nothing is left, neither process nor directory.
func Launch(ctx context.Context, cfg Config) (_ *Client, err error) {
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	runtime := cfg.Runtime
	if runtime != "" {
		if runtime, err = exec.LookPath(runtime); err != nil {
			return nil, fmt.Errorf("launch monitor: runtime: %w: install it, or say in the configuration where it is: %w", err, errdefs.ErrNotFound)
		}
	}
	if cfg.Cgroup != "" {
		if _, err := cgroup.Open(cfg.Cgroup); err != nil {
			return nil, fmt.Errorf("launch monitor: %w", err)
		}
	}
	dir, err := bundle.Create(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("launch monitor: %w", err)
	}
	undo.Add("clean up monitor", func(ctx context.Context) error { return Cleanup(ctx, cfg.Dir) })
	settings := Settings{Runtime: runtime, Args: cfg.RuntimeArgs, Debug: cfg.Debug}
	err = errors.Join(os.Chmod(cfg.Dir, 0o700), os.MkdirAll(dir.Sockets(), 0o711), os.Chmod(dir.Sockets(), 0o700),
		os.Mkdir(ContainerDirs(dir), 0o700), bundle.WriteRecord(SettingsFile(dir), settings))
	if err != nil {
		return nil, fmt.Errorf("launch monitor: %w", err)
	}
	child, err := spawn(cfg, dir)
	if err != nil {
		return nil, fmt.Errorf("launch monitor: %w", explain(err, dir))
	}
	c, err := connect(dir, child)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("launch monitor: %w", explain(err, dir)), child.Kill(), wait(child))
	}
	undo.Add("close client", func(context.Context) error { return c.Close() })
	// The kernel may take longer to let it into its cgroup than the program to start.
	var placing sync.WaitGroup
	var placed error
	placing.Go(func() { placed = place(cfg, child.Pid) })
	err = c.call(ctx, Request{Verb: VerbHello}, nil, nil)
	placing.Wait()
	if err = errors.Join(err, placed); err != nil {
		return nil, fmt.Errorf("launch monitor: %w", explain(err, dir))
	}
	undo.Release()
	return c, nil
}

// spawn starts the process in a session of its own, with lock and socket, so that a client may connect at once.
func spawn(cfg Config, dir bundle.Dir) (_ *os.Process, err error) {
	binary := cfg.Binary
	if binary == "" {
		binary = binaryName
	}
	lock, err := dir.TakeLock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	socket, err := listen(dir.ShimSocket())
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	log, err := os.OpenFile(dir.Log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, string(dir))
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Env = "/", log, log, []*os.File{lock, socket}, append([]string{path}, frugal()...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	recorded, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	defer recorded.Close()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: install it, or say in the configuration where it is: %w", err, errdefs.ErrNotFound)
	}
	if err = record(cfg, dir, cmd.Process.Pid); err == nil {
		_, err = recorded.Write([]byte{1})
	}
	if errdefs.IsNotFound(err) || errors.Is(err, unix.EPIPE) {
		err = fmt.Errorf("it ended at once: %w: %w", err, errdefs.ErrUnavailable)
	}
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), wait(cmd.Process))
	}
	return cmd.Process, nil
}

// record says who the monitor is, and where it belongs.
func record(cfg Config, dir bundle.Dir, pid int) error {
	process, err := bundle.Identify(pid)
	if err != nil {
		return fmt.Errorf("record monitor: %w", err)
	}
	if err := dir.WriteShim(bundle.Shim{Process: process, Cgroup: cfg.Cgroup}); err != nil {
		return fmt.Errorf("record monitor: %w", err)
	}
	return nil
}

// place makes the monitor's group, if there is to be one, and puts the monitor there.
func place(cfg Config, pid int) error {
	if cfg.Cgroup == "" {
		return nil
	}
	if cfg.Adopt != nil {
		if err := cfg.Adopt(pid); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	group, err := cgroup.Open(cfg.Cgroup)
	if err != nil {
		return err
	}
	if err := group.Create(); err != nil {
		return err
	}
	return group.Add(pid)
}

func wait(p *os.Process) error {
	_, err := p.Wait()
	return err
}

// listen makes a socket in a directory that only root can enter.
func listen(path string) (*os.File, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	return l.File()
}

// explain adds the last lines that a dead monitor logged.
func explain(err error, dir bundle.Dir) error {
	text := bundle.LastWords(dir.Log())
	if text == "" || !errdefs.IsUnavailable(err) {
		return err
	}
	return fmt.Errorf("%w; its last log lines:\n%s", err, text)
}

// Connect connects to the monitor of a bundle. Unavailable when it has gone.
func Connect(ctx context.Context, dir string) (*Client, error) {
	c, err := connect(bundle.Dir(dir), nil)
	if err != nil {
		return nil, fmt.Errorf("connect to monitor: %w", err)
	}
	if err := c.call(ctx, Request{Verb: VerbHello}, nil, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to monitor: %w", err), c.Close())
	}
	return c, nil
}

// Cleanup ends what a monitor, dead or living, has left: itself, its containers, its cgroup and its bundle. It is
// idempotent. ctx bounds the waiting. Where a container could not be removed the bundle stays, so that it can be tried
// again.
func Cleanup(ctx context.Context, dir string) error {
	d := bundle.Dir(filepath.Clean(dir))
	if err := d.Cleanup(ctx); err != nil {
		return err
	}
	if err := deleteContainers(ctx, d); err != nil {
		return fmt.Errorf("clean up %s: %w", d, err)
	}
	return d.Remove()
}

// deleteContainers removes the containers that were started and not deleted.
func deleteContainers(ctx context.Context, d bundle.Dir) error {
	left, err := os.ReadDir(ContainerDirs(d))
	if err != nil || len(left) == 0 {
		return ignoreMissing(err)
	}
	var settings Settings
	if err := bundle.ReadRecord(SettingsFile(d), &settings); err != nil {
		return err
	}
	var errs []error
	for _, entry := range left {
		if settings.Runtime != "" { // external ones are others' to delete
			if err := deleteContainer(ctx, settings, entry.Name()); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		errs = append(errs, os.RemoveAll(filepath.Join(ContainerDirs(d), entry.Name())))
	}
	return errors.Join(errs...)
}

func deleteContainer(ctx context.Context, settings Settings, id string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, settings.Runtime, append(settings.Args[:len(settings.Args):len(settings.Args)], "delete", "--force", id)...)
	cmd.Dir, cmd.Env = "/", []string{path}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("delete container %s: %w: %.*s", id, err, maxText, bytes.TrimSpace(out))
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
