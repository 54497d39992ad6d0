package shim_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

// TestVMDiesDuringCreate ends the VM in the middle of a creation; nothing of the container may be left.
func TestVMDiesDuringCreate(t *testing.T) {
	driver := &vmtest.Driver{Agent: &vmtest.Agent{}}
	driver.Agent.Intercept = func(method string) error {
		if method == "CreateContainer" {
			driver.Machines()[0].End(errors.New("boom"))
		}
		return nil
	}
	p := ready(t, driver)
	if _, err := p.Create(t.Context(), p.request(t, "c1", "echo")); err == nil {
		t.Fatal("it was created")
	}
	if _, err := p.State(t.Context(), task.ID{Container: "c1"}); !errdefs.IsNotFound(err) {
		t.Errorf("state = %v", err)
	}
}

func TestCreateFails(t *testing.T) {
	fail := ""
	agent := &vmtest.Agent{Intercept: func(method string) error {
		if method == fail {
			return fmt.Errorf("no")
		}
		return nil
	}}
	p := ready(t, &vmtest.Driver{Agent: agent})
	tests := []struct {
		name   string
		method string
		change func(*task.CreateRequest)
		want   func(error) bool
	}{
		{"agent refuses", "CreateContainer", nil, nil},
		{"no layers", "", func(r *task.CreateRequest) { r.Layers = nil }, errdefs.IsInvalidArgument},
		{"layer is missing", "", func(r *task.CreateRequest) { r.Layers = []string{"/no/such/layer"} }, errdefs.IsNotFound},
		{"layer is a directory", "", func(r *task.CreateRequest) { r.Layers = []string{"/tmp"} }, errdefs.IsNotImplemented},
		{"no bundle", "", func(r *task.CreateRequest) { r.Bundle = "/no/such/bundle" }, errdefs.IsInvalidArgument},
		{"log in no directory", "", func(r *task.CreateRequest) { r.LogPath = "/no/such/directory/0.log" }, nil},
		{"terminal in request only", "", func(r *task.CreateRequest) { r.Terminal = true }, errdefs.IsInvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fail = tt.method
			defer func() { fail = "" }()
			req := p.request(t, "c1", "echo")
			if tt.change != nil {
				tt.change(&req)
			}
			if _, err := p.Create(t.Context(), req); err == nil || tt.want != nil && !tt.want(err) {
				t.Errorf("create = %v", err)
			}
			if _, err := p.State(t.Context(), task.ID{Container: "c1"}); !errdefs.IsNotFound(err) {
				t.Errorf("something is left: %v", err)
			}
		})
	}
	p.run(t, "c1", "echo", "the id is free")
}

// TestCreateGivenUp: a caller that goes away while the guest does not answer leaves nothing once it does. No cancellation
// crosses the shim's socket; what the caller does is delete what it may have made.
func TestCreateGivenUp(t *testing.T) {
	asked, answer := make(chan string, 2), make(chan struct{})
	agent := &vmtest.Agent{Intercept: func(method string) error {
		if method == "CreateContainer" || method == "Exec" {
			asked <- method
			<-answer
		}
		return nil
	}}
	p := ready(t, &vmtest.Driver{Agent: agent})
	giveUp := func(id task.ID, call func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		given := make(chan error, 1)
		go func() { given <- call(ctx) }()
		<-asked
		cancel()
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Errorf("the call that was given up: %v", err)
		}
		short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := p.Delete(short, id); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("delete while the guest hangs: %v", err)
		}
		deleted := make(chan error, 1)
		go func() { deleted <- p.Delete(t.Context(), id) }()
		answer <- struct{}{}
		if err := <-deleted; !errdefs.IsNotFound(err) {
			t.Errorf("delete = %v", err)
		}
		if _, err := p.State(t.Context(), id); !errdefs.IsNotFound(err) {
			t.Errorf("it is left in the shim: %v", err)
		}
		if gone := agent.Deleted(); !slices.Contains(gone, strings.TrimSuffix(id.Container+"/"+id.Exec, "/")) {
			t.Errorf("it is left in the guest, which deleted %v", gone)
		}
	}
	giveUp(task.ID{Container: "c1"}, func(ctx context.Context) error {
		_, err := p.Create(ctx, p.request(t, "c1", "echo"))
		return err
	})
	created := make(chan struct{})
	go func() {
		defer close(created)
		<-asked
		answer <- struct{}{}
	}()
	p.run(t, "c1", "sleep")
	<-created
	giveUp(task.ID{Container: "c1", Exec: "e1"}, func(ctx context.Context) error {
		return p.Exec(ctx, task.ExecRequest{ID: task.ID{Container: "c1", Exec: "e1"}, Process: []byte(`{"args":["echo"],"cwd":"/"}`)})
	})
}

// limitMemory changes a container's limit, in MiB.
func (p *pod) limitMemory(t *testing.T, id string, limit int64) error {
	limit <<= 20
	return p.Update(t.Context(), id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
}

// updates is an agent that counts updates, and refuses those that refuse says.
func updates(refuse func(n int) bool) (agent *vmtest.Agent, asked func() int) {
	var n atomic.Int64
	return &vmtest.Agent{Intercept: func(method string) error {
		if method == "Update" && refuse(int(n.Add(1))) {
			return errors.New("no")
		}
		return nil
	}}, func() int { return int(n.Load()) }
}

// TestUpdate: what the VM has no room for never reaches the guest, and what the guest refuses is as if it was not asked.
func TestUpdate(t *testing.T) {
	agent, asked := updates(func(n int) bool { return n == 1 })
	p := ready(t, &vmtest.Driver{Agent: agent}) // with 128 MiB, of which the guest needs 64
	p.run(t, "c1", "sleep")
	p.run(t, "c2", "sleep")
	if err := p.limitMemory(t, "c1", 4096); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "4096 MiB") || asked() != 0 {
		t.Errorf("beyond the VM: %v, the guest was asked %d times", err, asked())
	}
	if err := p.limitMemory(t, "c1", 40); err == nil || asked() != 1 {
		t.Errorf("what the guest refuses: %v", err)
	}
	if err := errors.Join(p.limitMemory(t, "c2", 40), p.limitMemory(t, "c1", 24)); err != nil {
		t.Errorf("room that the first did not take: %v", err)
	}
	if err := p.limitMemory(t, "c1", 25); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("more than both have room for: %v", err)
	}
}

// TestUpdatesInTurn: an update does not build on one that is under way and may fail.
func TestUpdatesInTurn(t *testing.T) {
	asked, entered, blocked := atomic.Int64{}, make(chan struct{}), make(chan struct{})
	p := ready(t, &vmtest.Driver{Agent: &vmtest.Agent{Intercept: func(method string) error {
		if method == "Update" && asked.Add(1) == 1 {
			close(entered)
			<-blocked
		}
		return nil
	}}})
	p.run(t, "c1", "sleep")
	limit, first := int64(40<<20), make(chan error, 1)
	resources := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	go func() { first <- p.Update(t.Context(), "c1", resources) }()
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Update(ctx, "c1", resources); !errors.Is(err, context.DeadlineExceeded) || asked.Load() != 1 {
		t.Errorf("the second: %v, the guest was asked %d times", err, asked.Load())
	}
	close(blocked)
	if err := <-first; err != nil {
		t.Errorf("the first: %v", err)
	}
}

// resizable is a pod whose VM has 1 processor and 128 MiB and can have 3 and 640 MiB, and its machine.
func resizable(t *testing.T, d *vmtest.Driver) (*pod, *vmtest.Machine) {
	t.Helper()
	d.Resizes = true
	return ready(t, d), d.Machines()[0]
}

// TestUpdateResizes: the VM grows before a limit does, and shrinks after it.
func TestUpdateResizes(t *testing.T) {
	agent, asked := updates(func(n int) bool { return n == 3 })
	d := &vmtest.Driver{Agent: agent}
	p, m := resizable(t, d)
	p.run(t, "c1", "sleep")
	p.run(t, "c2", "sleep")
	if err := errors.Join(p.limitMemory(t, "c1", 40), p.limitMemory(t, "c2", 300)); err != nil {
		t.Fatal(err)
	}
	if err := p.limitMemory(t, "c1", 200); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("an update that the guest refuses: %v", err)
	}
	if err := p.limitMemory(t, "c1", 400); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "vm.max_memory_mib") || asked() != 3 {
		t.Errorf("beyond the bound: %v, the guest was asked %d times", err, asked())
	}
	quota, period := int64(250_000), uint64(100_000)
	if err := p.Update(t.Context(), "c2", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}); err != nil {
		t.Fatal(err)
	}
	if info, err := p.Info(t.Context()); err != nil || info.Vm.Vcpus != 3 || info.Vm.MemoryBytes != 512<<20 {
		t.Errorf("the shim tells of %v, %v", info, err)
	}
	d.Stuck = 200 << 20
	if err := p.limitMemory(t, "c2", 10); !errdefs.IsFailedPrecondition(err) || asked() != 6 {
		t.Errorf("memory that does not come back: %v, the guest was asked %d times", err, asked())
	}
	d.Stuck = 0
	if err := p.limitMemory(t, "c2", 10); err != nil {
		t.Errorf("memory that comes back: %v", err)
	}
	want := []string{"512 MiB", "640 MiB", "512 MiB", "3 processors", "328 MiB", "512 MiB", "128 MiB"}
	if got := m.Resizes(); !slices.Equal(got, want) {
		t.Errorf("the VM was resized to %q, want %q", got, want)
	}
}

// TestResizeVM: its maker's wish counts as far as the containers' limits allow.
func TestResizeVM(t *testing.T) {
	p, m := resizable(t, &vmtest.Driver{})
	p.run(t, "c1", "sleep")
	for _, step := range []struct {
		vcpus  uint32
		memory uint64
		limit  int64 // of the container, set before
	}{{2, 300, 0}, {1, 10, 250}, {1, 10, 50}, {3, 640, 50}} {
		if step.limit > 0 {
			if err := p.limitMemory(t, "c1", step.limit); err != nil {
				t.Fatal(err)
			}
		}
		if err := p.ResizeVM(t.Context(), step.vcpus, step.memory<<20); err != nil {
			t.Errorf("%+v: %v", step, err)
		}
	}
	if err := p.ResizeVM(t.Context(), 3, 641<<20); !errdefs.IsResourceExhausted(err) {
		t.Errorf("beyond the bound: %v", err)
	}
	want := []string{"2 processors", "384 MiB", "1 processors", "128 MiB", "3 processors", "640 MiB"}
	if got := m.Resizes(); !slices.Equal(got, want) {
		t.Errorf("the VM was resized to %q, want %q", got, want)
	}
}

// TestResizeUndone: processors that the guest does not take are unplugged again.
func TestResizeUndone(t *testing.T) {
	var asked atomic.Int64
	p, m := resizable(t, &vmtest.Driver{Agent: &vmtest.Agent{Intercept: func(method string) error {
		if method == "Resize" && asked.Add(1) == 1 {
			return status.Error(codes.DeadlineExceeded, "use 3 processors, of which there are 2")
		}
		return nil
	}}})
	if err := p.ResizeVM(t.Context(), 3, 128<<20); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "of which there are 2") {
		t.Errorf("processors that the guest does not bring up: %v", err)
	}
	want := []string{"3 processors", "1 processors"}
	if got := m.Resizes(); !slices.Equal(got, want) {
		t.Errorf("the VM was resized to %q, want %q", got, want)
	}
	if info, err := p.Info(t.Context()); err != nil || info.Vm.Vcpus != 1 {
		t.Errorf("the shim tells of %v, %v", info, err)
	}
}

// TestStopWhileResizing: a guest that takes its time with a new size keeps nobody from stopping the pod.
func TestStopWhileResizing(t *testing.T) {
	resizing, over := make(chan struct{}), make(chan struct{})
	var once sync.Once
	p, _ := resizable(t, &vmtest.Driver{Agent: &vmtest.Agent{Intercept: func(method string) error {
		if method == "Resize" {
			once.Do(func() { close(resizing) })
			<-over
		}
		return nil
	}}})
	resized := make(chan error)
	go func() { resized <- p.ResizeVM(t.Context(), 3, 128<<20) }()
	<-resizing
	if _, err := p.service.StopSandbox(t.Context(), &sandboxv1.StopSandboxRequest{SandboxId: "pod1"}); err != nil {
		t.Errorf("stop: %v", err)
	}
	close(over)
	if err := <-resized; err == nil {
		t.Error("a pod that was stopped has been resized")
	}
}

// TestResizeGivenUp: a change whose caller has given up ends, and is undone, before the next.
func TestResizeGivenUp(t *testing.T) {
	quota, period := int64(200_000), uint64(100_000)
	two := &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	for name, change := range map[string]func(context.Context, *pod) error{
		"of the pod":       func(ctx context.Context, p *pod) error { return p.ResizeVM(ctx, 2, 128<<20) },
		"of its container": func(ctx context.Context, p *pod) error { return p.Update(ctx, "c1", two) },
	} {
		t.Run(name, func(t *testing.T) {
			hangs, over := make(chan struct{}), make(chan struct{})
			defer close(over)
			var asked atomic.Int64
			p, m := resizable(t, &vmtest.Driver{Agent: &vmtest.Agent{Intercept: func(method string) error {
				if method == "Resize" && asked.Add(1) == 1 {
					close(hangs)
					<-over
				}
				return nil
			}}})
			p.run(t, "c1", "sleep")
			ctx, cancel := context.WithCancelCause(t.Context())
			changed := make(chan error)
			go func() { changed <- change(ctx, p) }()
			<-hangs
			gone := errors.New("the caller has gone")
			cancel(gone)
			if err := <-changed; !errors.Is(err, gone) {
				t.Errorf("the first: %v", err)
			}
			if err := p.ResizeVM(t.Context(), 3, 128<<20); err != nil {
				t.Errorf("the next: %v", err)
			}
			want := []string{"2 processors", "1 processors", "3 processors"}
			if got := m.Resizes(); !slices.Equal(got, want) {
				t.Errorf("the VM was resized to %q, want %q", got, want)
			}
		})
	}
}
