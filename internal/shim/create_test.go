package shim_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

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

// TestUpdate: what the VM has no room for never reaches the guest, and what the guest refuses is as if it was not asked.
func TestUpdate(t *testing.T) {
	asked, refuse := 0, false
	agent := &vmtest.Agent{Intercept: func(method string) error {
		if method != "Update" {
			return nil
		}
		if asked++; refuse {
			return errors.New("no")
		}
		return nil
	}}
	p := ready(t, &vmtest.Driver{Agent: agent}) // with 128 MiB, of which the guest needs 64
	p.run(t, "c1", "sleep")
	p.run(t, "c2", "sleep")
	to := func(id string, limit int64) error {
		limit <<= 20
		return p.Update(t.Context(), id, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
	}
	if err := to("c1", 4096); !errdefs.IsResourceExhausted(err) || asked != 0 {
		t.Errorf("beyond the VM: %v, the guest was asked %d times", err, asked)
	}
	refuse = true
	if err := to("c1", 40); err == nil || asked != 1 {
		t.Errorf("what the guest refuses: %v", err)
	}
	refuse = false
	if err := errors.Join(to("c2", 40), to("c1", 24)); err != nil {
		t.Errorf("room that the first did not take: %v", err)
	}
	if err := to("c1", 25); !errdefs.IsResourceExhausted(err) {
		t.Errorf("more than both have room for: %v", err)
	}
}
