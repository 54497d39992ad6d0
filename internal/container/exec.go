package container

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	// MaxExecOutput bounds each of stdout and stderr of ExecSync, in bytes. What comes after it is read and dropped.
	MaxExecOutput = 16 << 20
	// drainTimeout is how long output may take to arrive after its process has ended.
	drainTimeout = 10 * time.Second
	// execPatience is how long a command's client waits for what is left of it to be removed.
	execPatience = 5 * time.Second
	// maxSpec bounds a bundle's spec when it is read again, in bytes.
	maxSpec = 16 << 20
)

// ExecSync runs a command in a running container and returns its output and exit code. A timeout above zero kills the
// command when it is over, and the error is DeadlineExceeded.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("command did not end within %s: %w", timeout, context.DeadlineExceeded))
		defer cancel()
	}
	out, errOut := &boundedBuffer{max: MaxExecOutput}, &boundedBuffer{max: MaxExecOutput}
	code, err = m.exec(ctx, id, cmd, execution{stdio: task.Stdio{Stdout: out, Stderr: errOut}, drain: drainTimeout})
	if err != nil {
		return nil, nil, 0, err
	}
	if dropped := out.Dropped() + errOut.Dropped(); dropped > 0 {
		m.log.WarnContext(ctx, "output of a command exceeded its bound and was cut", logfields.Container, id, logfields.Bytes, dropped)
	}
	return out.Bytes(), errOut.Bytes(), code, nil
}

// Exec runs a command in a running container with the caller's streams, and returns its exit code when it has ended and its
// output was delivered. The end of ctx kills the command. resize may be nil.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, tty bool, stdio task.Stdio, resize <-chan Size) (code int32, err error) {
	return m.exec(ctx, id, cmd, execution{tty: tty, stdio: stdio, resize: resize})
}

func (m *Manager) exec(ctx context.Context, id string, cmd []string, e execution) (code int32, err error) {
	ctx, end := span.Start(ctx, "container exec", span.Container.String(id))
	defer func() { end(err) }()
	if len(cmd) == 0 {
		return 0, fmt.Errorf("no command: %w", errdefs.ErrInvalidArgument)
	}
	rec, tasks, err := m.running(ctx, id, Running)
	if err != nil {
		return 0, err
	}
	pod, err := m.sandboxes.Status(ctx, rec.Config.SandboxID)
	if err != nil {
		return 0, err
	}
	process, err := m.execProcess(rec, pod.VM, cmd, e.tty)
	if err != nil {
		return 0, err
	}
	e.tasks, e.id, e.log = tasks, task.ID{Container: rec.ID, Exec: newID(8)}, m.log
	e.patience, e.life, e.beside = execPatience, m.ctx, m.watchers.Go
	exit, err := e.run(ctx, process)
	if err != nil {
		return 0, err
	}
	return int32(exit.Code), nil
}

// execProcess is the container's own process with another command.
func (m *Manager) execProcess(rec record, vm bool, cmd []string, tty bool) (json.RawMessage, error) {
	spec, err := readSpec(filepath.Join(m.bundle(rec.ID), specFile))
	if err != nil {
		return nil, err
	}
	p := *spec.Process
	p.Args, p.Terminal = cmd, tty
	if vm { // the host's scores and labels mean nothing there
		p.OOMScoreAdj, p.ApparmorProfile, p.SelinuxLabel = nil, "", ""
	}
	hasTerm := slices.ContainsFunc(p.Env, func(kv string) bool { return len(kv) >= 5 && kv[:5] == "TERM=" })
	if tty && !hasTerm {
		p.Env = append(p.Env, "TERM=xterm")
	}
	if rec.User != nil {
		p.User.UID, p.User.GID, p.User.AdditionalGids = rec.User.UID, rec.User.GID, rec.User.AdditionalGIDs
	}
	return json.Marshal(p)
}

func readSpec(path string) (*specs.Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	defer f.Close()
	var spec specs.Spec
	if err := json.NewDecoder(io.LimitReader(f, maxSpec)).Decode(&spec); err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	if spec.Process == nil {
		return nil, fmt.Errorf("spec: no process: %w", errdefs.ErrDataLoss)
	}
	return &spec, nil
}

// boundedBuffer keeps the first max bytes and counts the others.
type boundedBuffer struct {
	max     int
	mu      sync.Mutex
	buf     bytes.Buffer
	dropped int
}

// Write never fails, so that the writer goes on to the end.
func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	keep := min(len(p), b.max-b.buf.Len())
	b.buf.Write(p[:keep])
	b.dropped += len(p) - keep
	return len(p), nil
}

func (b *boundedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

func (b *boundedBuffer) Dropped() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}
