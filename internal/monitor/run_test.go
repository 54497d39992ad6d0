package monitor_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/steps"
	"github.com/pistis-run/pistis/internal/task"
)

// forEach runs a test with every runtime there is.
func forEach(t *testing.T, test func(t *testing.T, p *pod)) {
	for name, r := range runtimes(t) {
		t.Run(name, func(t *testing.T) { test(t, launch(t, r)) })
	}
}

var c1 = task.ID{Container: "c1"}

func TestRun(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		req := p.run("c1", []string{"/prog", "say", "out", "err"})
		exit := p.end("c1")
		if exit.Code != 0 || exit.At.IsZero() || exit.OOMKilled || exit.Reason != "" {
			t.Errorf("exit = %+v", exit)
		}
		got := records(t, req.LogPath)
		slices.Sort(got)
		if !slices.Equal(got, []string{"stderr F err", "stdout F out"}) {
			t.Errorf("log = %q", got)
		}
		p.run("c2", []string{"/prog", "exit", "3"})
		if exit := p.end("c2"); exit.Code != 3 {
			t.Errorf("exit = %+v", exit)
		}
		for name, err := range map[string]error{
			"delete": p.Delete(t.Context(), c1), "signal": p.Signal(t.Context(), c1, 9, true), "reopen": p.ReopenLog(t.Context(), "c1"),
		} {
			if !errdefs.IsNotFound(err) {
				t.Errorf("%s of a deleted container = %v", name, err)
			}
		}
	})
}

// TestSteps: a call tells of its steps where its client records, also one that fails.
func TestSteps(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		for id, args := range map[string][]string{"c1": {"/prog", "say", "out"}, "bad": {"nosuch"}} {
			p.create(id, args)
			ctx := steps.Record(t.Context())
			_, err := p.Start(ctx, task.ID{Container: id})
			if (err == nil) != (id == "c1") {
				t.Errorf("start of %q: %v", args, err)
			}
			var names []string
			for _, s := range steps.Recorded(ctx).Steps {
				names = append(names, s.Name)
			}
			if !slices.Equal(names, []string{"cgroup", "runtime run"}) {
				t.Errorf("start of %q: steps %q", args, names)
			}
		}
		p.end("c1")
	})
}

// TestStartFails wants the runtime's words, and nothing left.
func TestStartFails(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		for i, tt := range []struct {
			args  []string
			want  string
			class func(error) bool
		}{
			{[]string{"nosuch"}, `exec: "nosuch": executable file not found in $PATH`, errdefs.IsInvalidArgument},
			{[]string{"/proc"}, "exec", func(err error) bool { return err != nil }},
		} {
			id := task.ID{Container: fmt.Sprint("bad", i)}
			req := p.create(id.Container, tt.args)
			_, err := p.Start(t.Context(), id)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !tt.class(err) {
				t.Errorf("start of %q = %v", tt.args, err)
			}
			if left, _ := os.ReadDir(filepath.Join(p.work, "state")); len(left) > 0 {
				t.Errorf("left in the runtime's state: %v", left)
			}
			if got := records(t, req.LogPath); len(got) > 0 {
				t.Errorf("the runtime's words are in the container's log: %q", got)
			}
			if exit := p.end(id.Container); exit.Code != 255 || exit.Reason != err.Error() {
				t.Errorf("exit = %+v", exit)
			}
		}
		req := p.create("c1", []string{"/prog", "pause"})
		os.WriteFile(filepath.Join(req.Bundle, "config.json"), []byte("{"), 0o600)
		if _, err := p.Start(t.Context(), c1); err == nil {
			t.Errorf("start with a broken spec = %v", err)
		}
	})
}

func TestSignal(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		out := newLines()
		p.create("c1", []string{"/prog", "term"})
		go p.Attach(context.Background(), c1, task.Stdio{Stdout: out})
		if _, err := p.Start(t.Context(), c1); err != nil {
			t.Fatal(err)
		}
		out.expect(t, "ready")
		if err := p.Delete(t.Context(), c1); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("delete of a running container = %v", err)
		}
		if _, err := p.Start(t.Context(), c1); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("second start = %v", err)
		}
		if err := p.Signal(t.Context(), c1, uint32(unix.SIGTERM), false); err != nil {
			t.Fatal(err)
		}
		out.expect(t, "terminated")
		exit, err := p.Wait(t.Context(), c1)
		if exit.Code != 7 || err != nil {
			t.Errorf("exit = %+v, %v", exit, err)
		}
		if err := p.Signal(t.Context(), c1, uint32(unix.SIGKILL), true); !errdefs.IsNotFound(err) {
			t.Errorf("signal to an ended container = %v", err)
		}
		// One that was not started ends too, and can be deleted.
		p.create("c2", []string{"/prog", "pause"})
		p.kill("c2")
		if exit := p.end("c2"); exit.Code != 137 {
			t.Errorf("exit = %+v", exit)
		}
		p.create("c3", []string{"/prog", "pause"})
		if err := p.Delete(t.Context(), task.ID{Container: "c3"}); err != nil {
			t.Error(err)
		}
	})
}

// TestKilledWhileStarting: a runtime that hangs does not keep a container from being killed.
func TestKilledWhileStarting(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		fifo := filepath.Join(p.work, "fifo")
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		p.create("c1", []string{"/prog", "pause"}, func(s *specs.Spec, _ *monitor.CreateRequest) {
			script := "echo >" + fifo + "; exec sleep 600"
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}}}}
		})
		started := make(chan error, 1)
		go func() {
			_, err := p.Start(context.Background(), c1)
			started <- err
		}()
		if _, err := os.ReadFile(fifo); err != nil { // the hook runs
			t.Fatal(err)
		}
		p.kill("c1")
		if err := <-started; err == nil || !strings.Contains(err.Error(), "killed while it was started") {
			t.Errorf("start = %v", err)
		}
		if exit := p.end("c1"); exit.Code != 255 {
			t.Errorf("exit = %+v", exit)
		}
	})
}

func TestOOM(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		p.run("c1", []string{"/prog", "memory", "200"}, func(s *specs.Spec, _ *monitor.CreateRequest) {
			limit := int64(32 << 20)
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
		})
		if exit := p.end("c1"); exit.Code != 137 || !exit.OOMKilled {
			t.Errorf("exit = %+v", exit)
		}
	})
}

// TestSharedPIDNamespace: what a container's first process leaves behind ends with it, and does not hold up its exit.
func TestSharedPIDNamespace(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		shared := func(s *specs.Spec, _ *monitor.CreateRequest) { s.Linux.Namespaces = s.Linux.Namespaces[1:] }
		req := p.run("c1", []string{"/prog", "child"}, shared)
		if exit := p.end("c1"); exit.Code != 0 {
			t.Errorf("exit = %+v", exit)
		}
		// The child's own word may come before the parent's.
		var pid int
		log := records(t, req.LogPath)
		if !slices.ContainsFunc(log, func(line string) bool {
			_, err := fmt.Sscanf(line, "stdout F child %d", &pid)
			return err == nil
		}) {
			t.Fatalf("log = %q", log)
		}
		checkDead(t, pid)
		// And all of one that lives are killed.
		p.run("c2", []string{"/prog", "pause"}, shared)
		started := p.execDetached(task.ID{Container: "c2", Exec: "e1"}, []string{"/prog", "pause"})
		p.kill("c2")
		if exit := p.end("c2"); exit.Code != 137 {
			t.Errorf("exit = %+v", exit)
		}
		checkDead(t, started)
	})
}

func TestUpdate(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		limit := func(mib int64) *specs.LinuxResources {
			bytes := mib << 20
			return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &bytes}}
		}
		// Before the start a change is one of the spec, and what it leaves out stays.
		shares := uint64(512)
		p.create("c1", []string{"/prog", "pause"}, func(s *specs.Spec, _ *monitor.CreateRequest) {
			s.Linux.Resources = limit(64)
			s.Linux.Resources.CPU = &specs.LinuxCPU{Shares: &shares}
		})
		if err := p.Update(t.Context(), "c1", limit(80)); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Start(t.Context(), c1); err != nil {
			t.Fatal(err)
		}
		p.expectFile("memory", "c1/memory.limit_in_bytes", "c1/memory.max", fmt.Sprint(80<<20))
		p.expectFile("cpu", "c1/cpu.shares", "", "512")
		if err := p.Update(t.Context(), "c1", limit(96)); err != nil {
			t.Fatal(err)
		}
		p.expectFile("memory", "c1/memory.limit_in_bytes", "c1/memory.max", fmt.Sprint(96<<20))
		p.kill("c1")
		if exit := p.end("c1"); exit.Code != 137 {
			t.Errorf("exit = %+v", exit)
		}
	})
}

// expectFile reads a file of a container's cgroup: v1 below a controller's hierarchy, or else v2, where there is one.
func (p *pod) expectFile(controller, v1, v2, want string) {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", controller, p.group, v1))
	if err != nil {
		if v2 == "" {
			return
		}
		data, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", p.group, v2))
	}
	if got := strings.TrimSpace(string(data)); got != want || err != nil {
		p.t.Errorf("%s = %s, %v, want %s", v1, got, err, want)
	}
}

// TestCheckpoint: whether criu works here or not, the container goes on, and one that does not run is refused.
func TestCheckpoint(t *testing.T) {
	forEach(t, func(t *testing.T, p *pod) {
		images, work := t.TempDir(), t.TempDir()
		p.create("c1", []string{"/prog", "pause"})
		if err := p.Checkpoint(t.Context(), "c1", images, work); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("checkpoint before the start = %v", err)
		}
		if _, err := p.Start(t.Context(), c1); err != nil {
			t.Fatal(err)
		}
		if err := p.Checkpoint(t.Context(), "c1", images, work); err != nil {
			t.Logf("SKIPPED, not tested: the images of criu: %v", err)
		} else if _, err := os.Stat(filepath.Join(images, "inventory.img")); err != nil {
			t.Error(err)
		}
		if _, err := p.InitPID(t.Context(), "c1"); err != nil {
			t.Errorf("after the checkpoint: %v", err)
		}
		p.kill("c1")
		if exit := p.end("c1"); exit.Code != 137 {
			t.Errorf("exit = %+v", exit)
		}
	})
}
