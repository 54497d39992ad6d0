package shimclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/span"
)

const (
	binaryName = "containerd-shim-pistis-v2"
	// startTimeout bounds the start command, which does no more than to fork.
	startTimeout = 30 * time.Second
)

// LaunchConfig describes a sandbox to launch.
type LaunchConfig struct {
	// Binary is the shim's path; empty looks for it on PATH.
	Binary string
	// ID of the sandbox.
	ID string
	// Dir is the sandbox's bundle. Launch makes it; it must not be there.
	Dir string
	// NetNS is the path of the pod's network namespace; empty gives the guest no network.
	NetNS       string
	Options     *shimv1.SandboxOptions
	Annotations map[string]string
	// Debug makes the shim log more.
	Debug bool
	// Prepare, where set, makes what the options name. It runs while the shim's process starts and has ended when
	// Launch returns; the caller takes back what it made.
	Prepare func() error
	// Adopt, where set, puts the shim's process into the cgroup of the options before it starts anything.
	Adopt func(pid int) error
}

// Launch starts a shim and boots its VM. ctx bounds the start, not the shim. On error no process is left; the directory
// is, with its logs, until Cleanup.
func Launch(ctx context.Context, cfg LaunchConfig) (_ *Client, err error) {
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	dir, err := bundle.Create(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("launch shim %s: %w", cfg.ID, err)
	}
	undo.Add("clean up shim", dir.Cleanup)
	var prepared error
	var beside sync.WaitGroup
	if cfg.Prepare != nil {
		beside.Go(func() { prepared = cfg.Prepare() })
	}
	err = startShim(ctx, cfg, dir)
	beside.Wait()
	if prepared != nil {
		return nil, errors.Join(prepared, err)
	}
	if err != nil {
		return nil, fmt.Errorf("launch shim %s: %w", cfg.ID, err)
	}
	c, err := connect(dir, cfg.ID)
	if err != nil {
		return nil, fmt.Errorf("launch shim %s: %w", cfg.ID, explain(err, dir))
	}
	undo.Add("close connection", func(context.Context) error { return c.Close() })
	if cfg.Adopt != nil {
		if err := adopt(cfg, dir); err != nil {
			return nil, fmt.Errorf("launch shim %s: cgroup: %w", cfg.ID, err)
		}
	}
	if err := c.boot(ctx, cfg); err != nil {
		return nil, err
	}
	undo.Release()
	return c, nil
}

func adopt(cfg LaunchConfig, dir bundle.Dir) error {
	shim, err := dir.ReadShim()
	if err != nil {
		return err
	}
	return cfg.Adopt(shim.Process.PID)
}

func (c *Client) boot(ctx context.Context, cfg LaunchConfig) error {
	options, err := anypb.New(cfg.Options)
	if err != nil {
		return err
	}
	err = c.call(ctx, sandboxv1.Service, "CreateSandbox", &sandboxv1.CreateSandboxRequest{
		SandboxId: cfg.ID, BundlePath: cfg.Dir, NetnsPath: cfg.NetNS, Options: options, Annotations: cfg.Annotations,
	}, &sandboxv1.CreateSandboxResponse{})
	if err == nil {
		err = c.call(ctx, sandboxv1.Service, "StartSandbox", &sandboxv1.StartSandboxRequest{SandboxId: cfg.ID}, &sandboxv1.StartSandboxResponse{})
	}
	if Gone(err) {
		err = explain(err, c.dir)
	}
	return err
}

// startShim runs the start command, which leaves the shim process behind.
func startShim(ctx context.Context, cfg LaunchConfig, dir bundle.Dir) (err error) {
	ctx, end := span.Start(ctx, "shim process")
	defer func() { end(err) }()
	binary := cfg.Binary
	if binary == "" {
		binary = binaryName
	}
	path, err := exec.LookPath(binary)
	if err != nil {
		return fmt.Errorf("%w: install it, or say in the configuration where it is: %w", err, errdefs.ErrNotFound)
	}
	call, err := Bootstrap{ID: cfg.ID, Bundle: string(dir), Debug: cfg.Debug}.Start()
	if err != nil {
		return err
	}
	// A start that is cut short could leave a shim that nobody has recorded, and so nobody finds.
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTimeout)
	defer cancel()
	cmd := exec.CommandContext(whole, path, call.Args...)
	cmd.Dir, cmd.Stdin = string(dir), bytes.NewReader(call.Input)
	// A session of its own: a signal to the daemon's terminal or group is not for the pods.
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%s: %w", strings.TrimSpace(string(exit.Stderr)), errdefs.ErrInternal)
	} else if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return checkAnswer(out, dir)
}

// checkAnswer holds the shim to what was agreed: the protocol, and the socket in the bundle.
func checkAnswer(out []byte, dir bundle.Dir) error {
	answer, err := ParseAnswer(out)
	if err != nil {
		return err
	}
	if want := "unix://" + dir.ShimSocket(); answer.Protocol != "ttrpc" || answer.Address != want {
		return fmt.Errorf("the shim speaks %s at %s and not ttrpc at %s: %w", answer.Protocol, answer.Address, want, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// explain adds the last lines that a dead shim logged.
func explain(err error, dir bundle.Dir) error {
	text := bundle.LastWords(dir.Log())
	if text == "" {
		return err
	}
	return fmt.Errorf("%w; the shim's last log lines:\n%s", err, text)
}

// Connect connects to the shim of a bundle. Unavailable when the shim has gone.
func Connect(ctx context.Context, dir string) (*Client, error) {
	d := bundle.Dir(dir)
	alive, err := d.Locked()
	if err != nil {
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	if !alive {
		return nil, fmt.Errorf("connect to shim: the shim of %s has gone: %w", dir, errdefs.ErrUnavailable)
	}
	c, err := connect(d, "")
	if err != nil {
		return nil, err
	}
	info, err := c.Info(ctx)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connect to shim: %w", err)
	}
	c.name(info.SandboxId)
	return c, nil
}

// Cleanup ends everything that a shim, dead or living, has left, and removes its bundle. It is idempotent. ctx bounds
// the waiting.
func Cleanup(ctx context.Context, dir string) error {
	d := bundle.Dir(filepath.Clean(dir))
	if err := d.Cleanup(ctx); err != nil {
		return err
	}
	return d.Remove()
}
