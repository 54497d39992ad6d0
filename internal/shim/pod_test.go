package shim_test

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/shim"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

// pod is a shim in the test's own process, with a fake VM, and a client of it over real sockets.
type pod struct {
	*shimclient.Client
	service *shim.Service
	driver  *vmtest.Driver
	agent   *vmtest.Agent
	dir     string
	layer   string
}

// newPod serves a sandbox that is not created yet.
func newPod(t *testing.T, driver *vmtest.Driver) *pod {
	t.Helper()
	if driver.Agent == nil && !driver.NoDialer {
		driver.Agent = &vmtest.Agent{}
	}
	p := &pod{driver: driver, agent: driver.Agent, dir: t.TempDir()}
	p.layer = filepath.Join(p.dir, "layer")
	for _, name := range []string{"layer", "kernel"} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := bundle.Create(filepath.Join(p.dir, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir.Sockets(), 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := bundle.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.WriteShim(bundle.Shim{Process: self}); err != nil {
		t.Fatal(err)
	}
	lock, err := dir.TakeLock()
	if err != nil {
		t.Fatal(err)
	}
	p.service = shim.New(shim.Options{
		ID: "pod1", Namespace: "test", Bundle: dir, Drivers: map[string]hypervisor.Driver{"fake": driver},
		GuestSpec:      func(s *specs.Spec) (*specs.Spec, error) { return s, nil },
		GuestResources: func(r *specs.LinuxResources) (*specs.LinuxResources, error) { return r, nil },
	})
	stop := serve(t, p.service, dir)
	p.Client, err = shimclient.Connect(t.Context(), string(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.service.Close(ctx); err != nil {
			t.Error(err)
		}
		p.Client.Close()
		stop()
		lock.Close()
		dir.Remove()
	})
	return p
}

func serve(t *testing.T, s *shim.Service, dir bundle.Dir) (stop func()) {
	t.Helper()
	server, err := shim.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	s.Register(server)
	rpc, err := net.Listen("unix", dir.ShimSocket())
	if err != nil {
		t.Fatal(err)
	}
	streams, err := net.Listen("unix", dir.StreamSocket())
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(context.Background(), rpc) })
	serving.Go(func() { s.ServeStreams(context.Background(), streams) })
	return func() {
		server.Close()
		streams.Close()
		serving.Wait()
	}
}

func (p *pod) createSandbox(t *testing.T) error {
	t.Helper()
	options, err := anypb.New(&shimv1.SandboxOptions{Vm: &shimv1.VMOptions{
		Hypervisor: "fake", Kernel: filepath.Join(p.dir, "kernel"), Acceleration: "tcg", Vcpus: 1, MemoryBytes: 128 << 20,
		BootTimeout: durationpb.New(5 * time.Second), AgentTimeout: durationpb.New(5 * time.Second),
		MaxVcpus: 3, MaxMemoryBytes: 640 << 20,
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.service.CreateSandbox(t.Context(), &sandboxv1.CreateSandboxRequest{SandboxId: "pod1", Options: options})
	return err
}

// ready is a pod whose VM runs.
func ready(t *testing.T, driver *vmtest.Driver) *pod {
	t.Helper()
	p := newPod(t, driver)
	if err := p.createSandbox(t); err != nil {
		t.Fatal(err)
	}
	if _, err := p.service.StartSandbox(t.Context(), &sandboxv1.StartSandboxRequest{SandboxId: "pod1"}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pod) request(t *testing.T, id string, args ...string) task.CreateRequest {
	t.Helper()
	dir := filepath.Join(p.dir, "c-"+id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(&specs.Spec{Process: &specs.Process{Args: args}, Root: &specs.Root{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return task.CreateRequest{ID: id, Bundle: dir, Layers: []string{p.layer}, LogPath: filepath.Join(p.dir, id+".log")}
}

func (p *pod) run(t *testing.T, id string, args ...string) {
	t.Helper()
	p.create(t, id, args...)
	if _, err := p.Start(t.Context(), task.ID{Container: id}); err != nil {
		t.Fatal(err)
	}
}

func (p *pod) create(t *testing.T, id string, args ...string) {
	t.Helper()
	if _, err := p.Create(t.Context(), p.request(t, id, args...)); err != nil {
		t.Fatal(err)
	}
}

func (p *pod) wait(t *testing.T, id task.ID) task.Exit {
	t.Helper()
	exit, err := p.Wait(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

func (p *pod) log(t *testing.T, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, id+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (p *pod) exec(t *testing.T, id task.ID, stdio bool, args ...string) error {
	t.Helper()
	process, err := json.Marshal(map[string]any{"args": args, "cwd": "/"})
	if err != nil {
		t.Fatal(err)
	}
	return p.Exec(t.Context(), task.ExecRequest{ID: id, Process: process, Stdin: stdio, Stdout: stdio, Stderr: stdio})
}
