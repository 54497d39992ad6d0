package shimclient_test

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/task"
)

// answers makes a method that answers always the same.
func answers(answer proto.Message) ttrpc.Method {
	return func(context.Context, func(any) error) (any, error) { return answer, nil }
}

// fromElsewhere adds a field that this version does not know.
func fromElsewhere[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 12345, protowire.BytesType), "of another version"))
	return m
}

// otherShim serves the methods of a shim of another version at a bundle, and streams with one reply.
func otherShim(t *testing.T, services map[string]map[string]ttrpc.Method, reply *shimv1.StreamReply) *shimclient.Client {
	t.Helper()
	dir, err := bundle.Create(filepath.Join(t.TempDir(), "b"))
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
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	for name, methods := range services {
		server.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
	calls, err := net.Listen("unix", dir.ShimSocket())
	if err != nil {
		t.Fatal(err)
	}
	streams, err := net.Listen("unix", dir.StreamSocket())
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(context.Background(), calls) })
	serving.Go(func() {
		for {
			conn, err := streams.Accept()
			if err != nil {
				return
			}
			agentv1.ReadMessage(conn, &shimv1.StreamHeader{})
			agentv1.WriteMessage(conn, reply)
			conn.Close()
		}
	})
	t.Cleanup(func() {
		server.Close()
		streams.Close()
		serving.Wait()
		lock.Close()
		dir.Remove()
	})
	c, err := shimclient.Connect(t.Context(), string(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

const (
	shimName = "pistis.shim.v1.Shim"
	taskName = "containerd.task.v3.Task"
)

// TestOldShim: a daemon that is newer than a shim that runs goes on with what the shim can, and is told clearly what it cannot.
func TestOldShim(t *testing.T) {
	id := task.ID{Container: "c1"}
	c := otherShim(t, map[string]map[string]ttrpc.Method{
		shimName: {
			"Info": answers(fromElsewhere(&shimv1.InfoResponse{SandboxId: "pod1"})),
		},
		taskName: {
			"Start":  answers(fromElsewhere(&taskapi.StartResponse{Pid: 7})),
			"Wait":   answers(&taskapi.WaitResponse{ExitStatus: 3, ExitedAt: timestamppb.Now()}),
			"Kill":   answers(&emptypb.Empty{}),
			"Delete": answers(&taskapi.DeleteResponse{}),
		},
		sandboxv1.Service: {
			"WaitSandbox": answers(&sandboxv1.WaitSandboxResponse{ExitStatus: 255, ExitedAt: timestamppb.Now()}),
		},
	}, &shimv1.StreamReply{Code: uint32(codes.Unimplemented), Error: "streams of this kind are not known"})
	if c.ID() != "pod1" {
		t.Errorf("id = %q", c.ID())
	}
	info, err := c.Info(t.Context())
	if err != nil || info.GetVm().GetVmmPid() != 0 {
		t.Errorf("info = %v, %v", info, err)
	}
	if pid, err := c.Start(t.Context(), id); pid != 7 || err != nil {
		t.Errorf("start = %d, %v", pid, err)
	}
	if exit, err := c.Wait(t.Context(), id); err != nil || exit.Code != 3 {
		t.Errorf("an exit that the shim says no more of = %+v, %v", exit, err)
	}
	if exit, err := c.WaitSandbox(t.Context()); err != nil || exit.Code != 255 {
		t.Errorf("sandbox's exit = %+v, %v", exit, err)
	}
	for what, call := range map[string]func() error{
		"create":   func() error { _, err := c.Create(t.Context(), task.CreateRequest{ID: "c2"}); return err },
		"exec":     func() error { return c.Exec(t.Context(), task.ExecRequest{ID: id}) },
		"resize":   func() error { return c.Resize(t.Context(), id, 80, 25) },
		"reopen":   func() error { return c.ReopenLog(t.Context(), "c1") },
		"update":   func() error { return c.Update(t.Context(), "c1", &specs.LinuxResources{}) },
		"pids":     func() error { _, err := c.Pids(t.Context(), "c1"); return err },
		"pause":    func() error { return c.Pause(t.Context(), "c1") },
		"resume":   func() error { return c.Resume(t.Context(), "c1") },
		"stats":    func() error { _, err := c.Stats(t.Context()); return err },
		"counters": func() error { _, err := c.Counters(t.Context()); return err },
		"attach":   func() error { return c.Attach(t.Context(), id, task.Stdio{Stdout: io.Discard}) },
		"connect":  func() error { _, err := c.Dial(t.Context(), "tcp", "localhost:1"); return err },
	} {
		if err := call(); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s = %v, want not implemented", what, err)
		}
	}
	_, err = c.Create(t.Context(), task.CreateRequest{ID: "c2", PID: task.PIDNamespace{Container: "c1"}})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an option that the shim would ignore: %v", err)
	}
	if err := c.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// TestHostileShim: a shim's answers may be a guest's doing; none may hang or crash the daemon.
func TestHostileShim(t *testing.T) {
	c := otherShim(t, map[string]map[string]ttrpc.Method{
		shimName: {
			"Info": answers(&shimv1.InfoResponse{SandboxId: "pod1"}),
			// The bytes are no message of the type that is expected.
			"Stats":    func(context.Context, func(any) error) (any, error) { return timestamppb.New(time.Unix(1<<40, 0)), nil },
			"Counters": answers(&shimv1.CountersResponse{Counters: []*shimv1.Counter{{Kind: "bytes", Part: "disk"}, {Kind: "bytes", Part: "disk"}}}),
			"Inspect":  func(context.Context, func(any) error) (any, error) { return nil, io.ErrUnexpectedEOF },
		},
		taskName: {
			"Wait": answers(&taskapi.WaitResponse{ExitStatus: 1 << 31}),
			"Pids": answers(&taskapi.PidsResponse{}),
		},
	}, &shimv1.StreamReply{Code: 4711, Error: strings.Repeat("x", 1<<10)})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if stats, err := c.Stats(ctx); err == nil && len(stats.Containers) > 0 {
		t.Errorf("stats = %+v", stats)
	}
	if counters, err := c.Counters(ctx); !errdefs.IsDataLoss(err) {
		t.Errorf("counters = %+v, %v", counters, err)
	}
	if _, err := c.Wait(ctx, task.ID{Container: "c1"}); err == nil {
		t.Error("an exit without its end was taken")
	}
	if _, err := c.Dial(ctx, "tcp", "localhost:1"); err == nil {
		t.Error("a refused stream was taken")
	}
	if ctx.Err() != nil {
		t.Error("a call hung")
	}
}
