package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/task"
)

func execWorld(t *testing.T, command func(ctx context.Context, stdio task.Stdio) uint32) (*world, *Manager, string) {
	t.Helper()
	w := newWorld()
	w.command = command
	m := newManager(t, w, t.TempDir())
	return w, m, mustStart(t, m)
}

// assertNoExec fails when a process beside the container's own is left.
func assertNoExec(t *testing.T, w *world) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for id := range w.procs {
		if id.Exec != "" {
			t.Errorf("left over: %v", id)
		}
	}
}

func TestExecSync(t *testing.T) {
	w, m, id := execWorld(t, func(_ context.Context, stdio task.Stdio) uint32 {
		_, _ = io.WriteString(stdio.Stdout, "out")
		_, _ = io.WriteString(stdio.Stderr, "err")
		return 3
	})
	out, errOut, code, err := m.ExecSync(t.Context(), id, []string{"sh", "-c", "x"}, time.Minute)
	if err != nil || string(out) != "out" || string(errOut) != "err" || code != 3 {
		t.Errorf("got %q, %q, %d, %v", out, errOut, code, err)
	}
	var p specs.Process
	if err := json.Unmarshal(w.last.Process, &p); err != nil {
		t.Fatal(err)
	}
	if p.Args[2] != "x" || p.User.UID != 7 || p.User.GID != 8 || w.last.Stdin || w.last.Terminal {
		t.Errorf("asked for %+v, %+v", w.last, p)
	}
	assertNoExec(t, w)
}

func TestExecSyncTimeoutKills(t *testing.T) {
	killed := make(chan struct{})
	w, m, id := execWorld(t, func(ctx context.Context, stdio task.Stdio) uint32 {
		_, _ = io.WriteString(stdio.Stdout, "some")
		<-ctx.Done()
		close(killed)
		return 137
	})
	_, _, _, err := m.ExecSync(t.Context(), id, []string{"sleep"}, time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1ms") {
		t.Errorf("got %v", err)
	}
	<-killed
	assertNoExec(t, w)
}

func TestExecThatIsGivenUpLeavesNothing(t *testing.T) {
	w, m, id := execWorld(t, nil)
	w.slow = true
	if _, _, _, err := m.ExecSync(t.Context(), id, []string{"x"}, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	assertNoExec(t, w)
}

// hungTasks take no call about a process that was made until they are let go.
type hungTasks struct {
	fakeTasks
	asked, letGo chan struct{}
}

func (h hungTasks) Start(ctx context.Context, _ task.ID) (uint32, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func (h hungTasks) Delete(ctx context.Context, id task.ID) error {
	close(h.asked)
	select {
	case <-h.letGo:
		return h.fakeTasks.Delete(ctx, id)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestExecOfHungGuest: the client hears of its time's end while the removal still waits, which goes on until the end of the
// manager.
func TestExecOfHungGuest(t *testing.T) {
	w, _, id := execWorld(t, nil)
	tasks := hungTasks{fakeTasks{w}, make(chan struct{}), make(chan struct{})}
	var group sync.WaitGroup
	life, end := context.WithCancel(t.Context())
	e := execution{
		tasks: tasks, id: task.ID{Container: id, Exec: "x"}, patience: time.Millisecond, life: life, beside: group.Go,
		log: slog.New(slog.DiscardHandler),
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := e.run(ctx, json.RawMessage("{}")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	<-tasks.asked
	end()
	group.Wait()
	tasks.asked = make(chan struct{})
	close(tasks.letGo)
	e.tasks, e.life = tasks, t.Context()
	e.delete(ctx)
	group.Wait()
	assertNoExec(t, w)
}

func TestExecSyncBoundsOutput(t *testing.T) {
	_, m, id := execWorld(t, func(_ context.Context, stdio task.Stdio) uint32 {
		chunk := bytes.Repeat([]byte("x"), 1<<20)
		for range 20 {
			if n, err := stdio.Stdout.Write(chunk); n != len(chunk) || err != nil {
				return 1 // the writer must never see the bound
			}
		}
		return 0
	})
	out, _, code, err := m.ExecSync(t.Context(), id, []string{"x"}, 0)
	if err != nil || code != 0 || len(out) != MaxExecOutput {
		t.Errorf("%d bytes, code %d, %v", len(out), code, err)
	}
}

func TestExecStreams(t *testing.T) {
	w, m, id := execWorld(t, func(_ context.Context, stdio task.Stdio) uint32 {
		_, _ = io.Copy(stdio.Stdout, stdio.Stdin)
		return 0
	})
	var out, errOut bytes.Buffer
	code, err := m.Exec(t.Context(), id, []string{"cat"}, true, task.Stdio{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut}, make(chan Size))
	if err != nil || code != 0 || out.String() != "hello" {
		t.Errorf("got %q, %d, %v", out.String(), code, err)
	}
	var p specs.Process
	if err := json.Unmarshal(w.last.Process, &p); err != nil {
		t.Fatal(err)
	}
	if !p.Terminal || !w.last.Terminal || w.last.Stderr || !strings.Contains(strings.Join(p.Env, " "), "TERM=xterm") {
		t.Errorf("asked for %+v, %+v", w.last, p)
	}
	assertNoExec(t, w)
}

func TestExecEndsWithItsClient(t *testing.T) {
	w, m, id := execWorld(t, func(ctx context.Context, _ task.Stdio) uint32 {
		<-ctx.Done()
		return 137
	})
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if _, err := m.Exec(ctx, id, []string{"sleep"}, false, task.Stdio{Stdout: io.Discard}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	assertNoExec(t, w)
}

func TestExecRefuses(t *testing.T) {
	w, m, id := execWorld(t, nil)
	if _, _, _, err := m.ExecSync(t.Context(), id, nil, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no command: %v", err)
	}
	if _, _, _, err := m.ExecSync(t.Context(), "none", []string{"x"}, 0); !errdefs.IsNotFound(err) {
		t.Errorf("unknown id: %v", err)
	}
	w.fail("task start", errFault)
	if _, _, _, err := m.ExecSync(t.Context(), id, []string{"x"}, 0); !errors.Is(err, errFault) {
		t.Errorf("failed start: %v", err)
	}
	assertNoExec(t, w)
	if err := m.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := m.ExecSync(t.Context(), id, []string{"x"}, 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("in a stopped container: %v", err)
	}
}

func TestAttach(t *testing.T) {
	w := newWorld()
	m := newManager(t, w, t.TempDir())
	id := mustCreate(t, m)
	var out bytes.Buffer
	ended := make(chan error)
	go func() { ended <- m.Attach(t.Context(), id, false, task.Stdio{Stdout: &out}, nil) }() // before the start
	if err := m.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	p, _ := w.proc(task.ID{Container: id})
	p.end(task.Exit{})
	if err := <-ended; err != nil && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	} else if err == nil && out.String() != "attached" {
		t.Errorf("got %q", out.String())
	}
	awaitExit(t, m, id)
	if err := m.Attach(t.Context(), id, false, task.Stdio{Stdout: &out}, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("to an exited one: %v", err)
	}
	other, err := m.Create(t.Context(), config("b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Attach(t.Context(), other, false, task.Stdio{Stdin: &out}, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stdin of one without: %v", err)
	}
}
