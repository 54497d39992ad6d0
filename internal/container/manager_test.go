package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

func TestTransitions(t *testing.T) {
	states := []State{Creating, Created, Starting, Running, Unknown, Exited, Removing}
	ops := []operation{opCreated, opStart, opStarted, opExit, opRemove}
	want := map[State]string{ // the new state for each of ops, - for a refusal
		Creating: "created - - - removing",
		Created:  "- starting - exited removing",
		Starting: "- - running exited -",
		Running:  "- - - exited -",
		Unknown:  "- - - exited -",
		Exited:   "- - - - removing",
		Removing: "- - - - removing",
	}
	for _, state := range states {
		for i, op := range ops {
			next, err := transitions().Next(state, op)
			expected := strings.Fields(want[state])[i]
			if (err != nil) != (expected == "-") || err == nil && string(next) != expected {
				t.Errorf("%s in %s: got %s, %v, want %s", op, state, next, err, expected)
			}
		}
	}
}

func TestLife(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	events, cancel := m.events.Subscribe()
	defer cancel()
	id := mustCreate(t, m)
	s, err := m.Status(t.Context(), id[:10])
	if err != nil || s.State != Created || s.User.UID != 7 || s.ImageID != "sha256:1234" {
		t.Fatalf("created: %+v, %v", s, err)
	}
	if w.create.User.User != "www" || w.create.Layers[0] != "/layers/1" || w.create.Spec.Process.Args[0] != "/app" {
		t.Errorf("asked for %+v", w.create)
	}
	if err := m.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if s, _ := m.Status(t.Context(), id); s.State != Running || s.PID != 42 || s.Started.IsZero() {
		t.Errorf("running: %+v", s)
	}
	if err := m.Start(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	p, _ := w.proc(task.ID{Container: id})
	p.end(task.Exit{Code: 3, At: time.Now()})
	if s := awaitExit(t, m, id); s.State != Exited || s.ExitCode != 3 || s.Reason != ReasonError || s.Finished.Before(s.Started) {
		t.Errorf("exited: %+v", s)
	}
	if err := m.Start(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start after the exit: %v", err)
	}
	for range 2 {
		if err := m.Stop(t.Context(), id, 0); err != nil {
			t.Error(err)
		}
		if err := m.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if _, err := m.Status(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	assertNothing(t, w, dir)
	for _, kind := range []event.Kind{event.Created, event.Started, event.Stopped, event.Deleted} {
		if e := <-events; e.Kind != kind || e.ID != id || e.SandboxID != "pod1" {
			t.Errorf("event %+v, want %s", e, kind)
		}
	}
}

func TestFailedCreateLeavesNothing(t *testing.T) {
	for _, step := range []string{"image get", "image use", "layers", "task create"} {
		t.Run(step, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			m := newManager(t, w, dir)
			w.fail(step, errFault)
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // undoing does not depend on the caller
			if _, err := m.Create(ctx, config("a")); !errors.Is(err, errFault) && !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v", err)
			}
			if _, err := m.Create(t.Context(), config("a")); !errors.Is(err, errFault) {
				t.Fatalf("got %v", err)
			}
			assertNothing(t, w, dir)
			if list := m.List(t.Context()); len(list) != 0 {
				t.Errorf("listed: %v", list)
			}
			w.fail(step, nil)
			mustCreate(t, m)
		})
	}
}

// notedPlugins note what they are told.
type notedPlugins struct {
	noPlugins
	err   error // of Adjust
	notes []string
}

func (p *notedPlugins) Adjust(context.Context, sandbox.Status, Status, *specs.Spec) (bool, error) {
	p.notes = append(p.notes, "asked")
	return false, p.err
}

func (p *notedPlugins) Tell(_ context.Context, moment Moment, _ sandbox.Status, _ Status) error {
	p.notes = append(p.notes, string(moment))
	return nil
}

// TestPluginsLearnOfAFailedCreate, once they were asked: they may have set something aside.
func TestPluginsLearnOfAFailedCreate(t *testing.T) {
	for _, test := range []struct {
		fault, want string
		err         error
	}{
		{"layers", "[]", nil}, {"task create", "[asked stopped removed]", nil}, {"", "[asked stopped removed]", errFault},
	} {
		w, dir := newWorld(), t.TempDir()
		m, p := newManager(t, w, dir), &notedPlugins{err: test.err}
		m.plugins = p
		w.fail(test.fault, errFault)
		if _, err := m.Create(t.Context(), config("a")); !errors.Is(err, errFault) {
			t.Fatalf("got %v", err)
		}
		if got := fmt.Sprint(p.notes); got != test.want {
			t.Errorf("%q: plugins were told %s, want %s", test.fault, got, test.want)
		}
		assertNothing(t, w, dir)
	}
}

func TestPIDNamespace(t *testing.T) {
	w := newWorld()
	m := newManager(t, w, t.TempDir())
	target := mustStart(t, m)
	cfg := config("debugger")
	cfg.Security.TargetPID = target[:12]
	debugger, err := m.Create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.create.PID; got != (task.PIDNamespace{Container: target}) {
		t.Errorf("the debugger's namespace: %+v", got)
	}
	cfg = config("third")
	cfg.Security.TargetPID = debugger
	if _, err := m.Create(t.Context(), cfg); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "created") {
		t.Errorf("a target that does not run: %v", err)
	}
	w.sharedPID = true
	for shared, want := range map[bool]task.PIDNamespace{true: {}, false: {Own: true}} {
		cfg := config(fmt.Sprint("shared-", shared))
		cfg.Security.SharedPID = shared
		if _, err := m.Create(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		if got := w.create.PID; got != want {
			t.Errorf("shared %t in a pod that shares: %+v", shared, got)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	for name, c := range map[string]struct {
		change func(*Config)
		is     func(error) bool
		says   string
	}{
		"unknown image":   {func(c *Config) { c.Image = "nope" }, errdefs.IsNotFound, "nope"},
		"missing path":    {func(c *Config) { c.Mounts = []Mount{{ContainerPath: "/data", HostPath: "/does/not/exist"}} }, errdefs.IsInvalidArgument, "/does/not/exist"},
		"propagation":     {func(c *Config) { c.Mounts = []Mount{{ContainerPath: "/data", HostPath: "/", Propagation: "rshared"}} }, errdefs.IsNotImplemented, "Bidirectional"},
		"image volume":    {func(c *Config) { c.Mounts = []Mount{{ContainerPath: "/data", Image: "x"}} }, errdefs.IsNotFound, "/data"},
		"device":          {func(c *Config) { c.Devices = []Device{{CDI: "vendor.test/class=one"}} }, errdefs.IsNotImplemented, "vendor.test"},
		"stop signal":     {func(c *Config) { c.StopSignal = "SIGNOPE" }, errdefs.IsInvalidArgument, "SIGNOPE"},
		"seccomp file":    {func(c *Config) { c.Security.Seccomp = Profile{ProfileLocalhost, "/does/not/exist"} }, errdefs.IsNotFound, "/does/not/exist"},
		"apparmor":        {func(c *Config) { c.Security.AppArmor = Profile{ProfileLocalhost, "mine"} }, errdefs.IsNotImplemented, "mine"},
		"selinux":         {func(c *Config) { c.Security.SELinuxLabel = "a:b:c:s0" }, errdefs.IsNotImplemented, "SELinux"},
		"target pid":      {func(c *Config) { c.Security.TargetPID = "other" }, errdefs.IsNotFound, "other"},
		"capability":      {func(c *Config) { c.Security.AddCaps = []string{"FLY"} }, errdefs.IsInvalidArgument, "FLY"},
		"pod not ready":   {func(*Config) { w.state = "not-ready" }, errdefs.IsFailedPrecondition, "not-ready"},
		"unknown sandbox": {func(*Config) { w.gone = true }, errdefs.IsNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config("a")
			c.change(&cfg)
			if _, err := m.Create(t.Context(), cfg); !c.is(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
			w.state, w.gone = "ready", false
			assertNothing(t, w, dir)
		})
	}
	id := mustCreate(t, m)
	if _, err := m.Create(t.Context(), config("a")); !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), id) {
		t.Errorf("second with the name: %v", err)
	}
	cfg := config("a")
	cfg.Attempt = 1
	if _, err := m.Create(t.Context(), cfg); err != nil {
		t.Errorf("next attempt: %v", err)
	}
}

func TestConcurrentCreatesOfOneName(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	errs := make([]error, 8)
	var group sync.WaitGroup
	for i := range errs {
		group.Go(func() { _, errs[i] = m.Create(t.Context(), config("a")) })
	}
	group.Wait()
	ok := 0
	for _, err := range errs {
		if err == nil {
			ok++
		} else if !errdefs.IsAlreadyExists(err) {
			t.Error(err)
		}
	}
	if list := m.List(t.Context()); ok != 1 || len(list) != 1 {
		t.Errorf("%d succeeded, %d listed", ok, len(list))
	}
}

func TestFailedStart(t *testing.T) {
	for text, want := range map[string]struct {
		code   int32
		reason string
	}{
		`exec: "nope": executable file not found in $PATH`: {127, ReasonCannotRun},
		"exec /x: no such file or directory":               {127, ReasonCannotRun},
		"exec /x: permission denied":                       {126, ReasonCannotRun},
		"exec /x: exec format error":                       {126, ReasonCannotRun},
		"the guest does not answer":                        {128, ReasonStartError},
	} {
		t.Run(text, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			m := newManager(t, w, dir)
			id := mustCreate(t, m)
			w.fail("task start", errors.New(text))
			if err := m.Start(t.Context(), id); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("got %v", err)
			}
			if s := awaitExit(t, m, id); s.ExitCode != want.code || s.Reason != want.reason || !strings.Contains(s.Message, text) {
				t.Errorf("status %+v", s)
			}
			if err := m.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
			assertNothing(t, w, dir)
		})
	}
}

func TestOutcome(t *testing.T) {
	for _, c := range []struct {
		exit   task.Exit
		reason string
	}{
		{task.Exit{}, ReasonCompleted},
		{task.Exit{Code: 1}, ReasonError},
		{task.Exit{Code: 137, OOMKilled: true}, ReasonOOMKilled},
		{task.Exit{Code: 255}, ReasonError},
		{task.Exit{Code: 255, Reason: "the virtual machine ended"}, ReasonUnknown},
	} {
		if code, reason, message := outcome(c.exit); reason != c.reason || uint32(code) != c.exit.Code || message != c.exit.Reason {
			t.Errorf("%+v: %d %s %q", c.exit, code, reason, message)
		}
	}
}

func TestStop(t *testing.T) {
	t.Run("by its signal", func(t *testing.T) {
		w := newWorld()
		m := newManager(t, w, t.TempDir())
		id := mustStart(t, m)
		if err := m.Stop(t.Context(), id, time.Hour); err != nil {
			t.Fatal(err)
		}
		if s, _ := m.Status(t.Context(), id); s.ExitCode != 128+int32(unix.SIGQUIT) {
			t.Errorf("%+v", s)
		}
	})
	t.Run("killed after the grace period", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.stubborn = true
			m := newManager(t, w, t.TempDir())
			id := mustStart(t, m)
			begin := time.Now()
			if err := m.Stop(t.Context(), id, time.Minute); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(begin); took != time.Minute {
				t.Errorf("took %s", took)
			}
			if s, _ := m.Status(t.Context(), id); s.ExitCode != 137 {
				t.Errorf("%+v", s)
			}
			_ = m.Close()
		})
	})
	t.Run("a second stop without grace overtakes", func(t *testing.T) {
		w := newWorld()
		w.stubborn = true
		m := newManager(t, w, t.TempDir())
		id := mustStart(t, m)
		first := make(chan error)
		go func() { first <- m.Stop(t.Context(), id, time.Hour) }()
		if err := m.Stop(t.Context(), id, 0); err != nil {
			t.Error(err)
		}
		if err := <-first; err != nil {
			t.Error(err)
		}
	})
	t.Run("hung guest", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld()
			w.hung = true
			m := newManager(t, w, t.TempDir())
			id := mustStart(t, m)
			if err := m.Stop(t.Context(), id, time.Second); !errdefs.IsDeadlineExceeded(err) && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			if err := m.StopAll(t.Context(), "pod1"); err == nil {
				t.Error("no error")
			}
			w.crash("killed")
			if s := awaitExit(t, m, id); s.ExitCode != 255 {
				t.Errorf("%+v", s)
			}
			if err := m.RemoveAll(t.Context(), "pod1"); err != nil {
				t.Error(err)
			}
			_ = m.Close()
		})
	})
}

func TestPodEndsUnderAContainer(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	id := mustStart(t, m)
	w.crash("the virtual machine ended: signal: killed")
	if s := awaitExit(t, m, id); s.ExitCode != 255 || s.Reason != ReasonUnknown || !strings.Contains(s.Message, "signal: killed") {
		t.Errorf("%+v", s)
	}
	if err := m.Remove(t.Context(), id); err != nil {
		t.Error(err)
	}
	w.procs = nil // they ended with the pod
	assertNothing(t, w, dir)
}

func TestRemoveKillsAndIsRetryable(t *testing.T) {
	for _, step := range []string{"task delete", "image unuse"} {
		w, dir := newWorld(), t.TempDir()
		m := newManager(t, w, dir)
		id := mustStart(t, m)
		w.fail(step, errFault)
		if err := m.Remove(t.Context(), id); !errors.Is(err, errFault) {
			t.Errorf("%s: %v", step, err)
		}
		if s, err := m.Status(t.Context(), id); err != nil || s.State != Removing || s.ExitCode != 137 {
			t.Errorf("%s: %+v, %v", step, s, err)
		}
		w.fail(step, nil)
		if err := m.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
		assertNothing(t, w, dir)
	}
}

func TestConcurrentStartStopRemove(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	m := newManager(t, w, dir)
	for range 10 {
		id := mustCreate(t, m)
		var group sync.WaitGroup
		group.Go(func() {
			if err := m.Start(t.Context(), id); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
				t.Error(err)
			}
		})
		for range 3 {
			group.Go(func() {
				if err := m.Stop(t.Context(), id, time.Second); err != nil {
					t.Error(err)
				}
			})
			group.Go(func() {
				if err := m.Remove(t.Context(), id); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		assertNothing(t, w, dir)
	}
}

func TestUpdateMerges(t *testing.T) {
	w := newWorld()
	m := newManager(t, w, t.TempDir())
	id := mustStart(t, m)
	limit, shares, quota := int64(1<<20), uint64(512), int64(1000)
	first := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}}
	if err := m.Update(t.Context(), id, first); err != nil {
		t.Fatal(err)
	}
	if err := m.Update(t.Context(), id, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota}}); err != nil {
		t.Fatal(err)
	}
	if w.limits.Memory != nil || *w.limits.CPU.Quota != quota {
		t.Errorf("the guest got %+v", w.limits)
	}
	s, _ := m.Status(t.Context(), id)
	r := s.Config.Resources
	if *r.Memory.Limit != limit || *r.CPU.Shares != shares || *r.CPU.Quota != quota {
		data, _ := json.Marshal(r)
		t.Errorf("kept %s", data)
	}
	if first.CPU.Quota != nil {
		t.Error("the caller's value was changed")
	}
	if err := m.Update(t.Context(), id, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}); err != nil || w.limits.CPU.Cpus != "0" {
		t.Errorf("cpuset: %v", err)
	}
	rt := int64(1)
	if err := m.Update(t.Context(), id, &specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: &rt}}); !errdefs.IsNotImplemented(err) {
		t.Errorf("realtime: %v", err)
	}
	w.fail("task update", errFault)
	if err := m.Update(t.Context(), id, first); !errors.Is(err, errFault) {
		t.Errorf("got %v", err)
	}
}

// TestStopCutsUpdate: who ends a container does not wait for a guest that makes no room for its limits. Nobody is told of them
// before they hold, not by a daemon either that starts after another has ended in the middle.
func TestStopCutsUpdate(t *testing.T) {
	for name, end := range map[string]func(*Manager, string) error{
		"stop":   func(m *Manager, id string) error { return m.Stop(t.Context(), id, 0) },
		"remove": func(m *Manager, id string) error { return m.Remove(t.Context(), id) },
	} {
		w := newWorld()
		w.stuck = make(chan struct{})
		dir := t.TempDir()
		m := newManager(t, w, dir)
		id := mustStart(t, m)
		limit, updated := int64(1<<20), make(chan error)
		go func() {
			updated <- m.Update(t.Context(), id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
		}()
		<-w.stuck
		again := newManager(t, w, dir)
		if err := again.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*Manager{m, again} {
			if s, err := m.Status(t.Context(), id); err != nil || s.Config.Resources != nil && s.Config.Resources.Memory != nil {
				t.Errorf("%s: %+v, %v", name, s.Config.Resources, err)
			}
		}
		if err := end(m, id); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-updated; !errdefs.IsAborted(err) {
			t.Errorf("%s: the update: %v", name, err)
		}
	}
}

// TestUpdateOnTheHost: what a guest has not is handed on to the runtime, and what has ended keeps the change for its status.
func TestUpdateOnTheHost(t *testing.T) {
	w := newWorld()
	w.host = true
	m := newManager(t, w, t.TempDir())
	id := mustStart(t, m)
	rt, limit := int64(1), int64(1<<20)
	wanted := &specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: &rt}, Unified: map[string]string{"memory.high": "1"}}
	if err := m.Update(t.Context(), id, wanted); err != nil || w.limits != wanted {
		t.Fatalf("the runtime got %+v, %v", w.limits, err)
	}
	if err := m.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	w.fail("task update", errFault) // is not asked
	if err := m.Update(t.Context(), id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	s, _ := m.Status(t.Context(), id)
	if r := s.Config.Resources; *r.Memory.Limit != limit || r.Unified["memory.high"] != "1" {
		t.Errorf("kept %+v", r)
	}
}

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]unix.Signal{
		"SIGTERM": 15, "term": 15, "9": 9, "SIGKILL": 9, "RTMIN": 34, "SIGRTMIN+3": 37, "SIGRTMAX-1": 63, "64": 64, " SIGUSR1 ": 10,
	} {
		if got, err := parseSignal(name); err != nil || got != want {
			t.Errorf("%q: %d, %v", name, got, err)
		}
	}
	for _, name := range []string{"NOPE", "0", "65", "-1", "RTMIN+31", "RTMIN+", "RTMAX--1", "SIGSIGTERM"} {
		if got, err := parseSignal(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %d, %v", name, got, err)
		}
	}
	if got, err := stopSignal("", ""); err != nil || got != unix.SIGTERM {
		t.Errorf("default: %v, %v", got, err)
	}
}
