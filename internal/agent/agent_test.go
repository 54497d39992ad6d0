package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/cgroup"
	"github.com/pistis-run/pistis/internal/reaper"
	"github.com/pistis-run/pistis/internal/runc"
)

// hostRuntime runs programs on this machine without any container around them.
type hostRuntime struct {
	reaper  *reaper.Reaper
	refuse  error
	release map[string]*os.File // what a created container's program waits for
	mu      sync.Mutex
}

func (r *hostRuntime) spawn(stdio runc.Stdio, script string, stdin *os.File) (*runc.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []*os.File{null, stdio.Files[1], stdio.Files[2]}
	if stdio.Files[0] != nil {
		files[0] = stdio.Files[0]
	}
	p, err := r.reaper.Start("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Files: append(files, stdin)})
	return &runc.Process{Process: p}, err
}

func (r *hostRuntime) Create(_ context.Context, id, _ string, stdio runc.Stdio) (*runc.Process, error) {
	if r.refuse != nil {
		return nil, r.refuse
	}
	gate, release, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	r.mu.Lock()
	r.release[id] = release
	r.mu.Unlock()
	return r.spawn(stdio, "read x <&3; echo started; read x; echo got $x; exit 3", gate)
}

func (r *hostRuntime) Start(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.release[id].Close()
}

func (r *hostRuntime) Exec(_ context.Context, _, _, file string, stdio runc.Stdio) (*runc.Process, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, err
	}
	return r.spawn(stdio, "echo exec; exit 4", nil)
}

func (r *hostRuntime) Update(context.Context, string, string) error { return nil }
func (r *hostRuntime) Pause(context.Context, string) error          { return nil }
func (r *hostRuntime) Resume(context.Context, string) error         { return nil }
func (r *hostRuntime) Delete(context.Context, string) error         { return nil }

// newAgent returns an agent with one created container, named c, without a root file system of its own.
func newAgent(t *testing.T, refuse error) (*Agent, *hostRuntime) {
	t.Helper()
	reap := reaper.New()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { reap.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	r := &hostRuntime{reaper: reap, refuse: refuse, release: map[string]*os.File{}}
	a := New(Config{Runtime: r, Reaper: reap, Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	a.sandbox.ready = true
	c := &container{
		id: "c", bundle: filepath.Join(a.Dir, "bundle"), group: cgroup.Group(filepath.Join(a.Dir, "no-cgroup")),
		init: newProcess("c"), execs: map[string]*process{}, spec: specs.Process{Cwd: "/"},
	}
	if _, err := a.reserve(c); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.init.stdio, err = newStdio(false, true); err != nil {
		t.Fatal(err)
	}
	if err := a.spawnInit(ctx, c); err != nil {
		t.Fatal(err)
	}
	c.init.settle(created)
	close(c.init.made)
	t.Cleanup(func() {
		_ = c.init.signal(unix.SIGKILL)
		a.work.Wait()
		for _, p := range c.processes() {
			p.stdio.Close()
		}
	})
	return a, r
}

// open opens a stream to the agent and returns the host's end after the reply.
func open(t *testing.T, a *Agent, header *agentv1.StreamHeader) (*net.UnixConn, *agentv1.StreamReply) {
	t.Helper()
	host, guest := socketPair(t)
	a.work.Go(func() {
		defer guest.Close()
		_ = a.serveStream(context.Background(), guest)
	})
	if err := agentv1.WriteMessage(host, header); err != nil {
		t.Fatal(err)
	}
	var reply agentv1.StreamReply
	if err := agentv1.ReadMessage(host, &reply); err != nil {
		t.Fatal(err)
	}
	return host, &reply
}

func socketPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return ends[0], ends[1]
}

func stdioHeader(container, exec string, fd agentv1.StdioStream_FD) *agentv1.StreamHeader {
	return &agentv1.StreamHeader{Kind: &agentv1.StreamHeader_Stdio{Stdio: &agentv1.StdioStream{Container: container, Exec: exec, Fd: fd}}}
}

func TestLifeOfAContainer(t *testing.T) {
	a, _ := newAgent(t, nil)
	ctx := t.Context()
	in, _ := open(t, a, stdioHeader("c", "", agentv1.StdioStream_STDIN))
	out, _ := open(t, a, stdioHeader("c", "", agentv1.StdioStream_STDOUT))
	if _, reply := open(t, a, stdioHeader("c", "", agentv1.StdioStream_STDOUT)); codes.Code(reply.Code) != codes.AlreadyExists {
		t.Errorf("a second stream: %v", reply)
	}
	if _, err := a.Exec(ctx, &agentv1.ExecRequest{Container: "c", Id: "e", Process: []byte(`{"args":["x"]}`)}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec before start: %v", err)
	}
	early := make(chan *agentv1.WaitResponse, 1)
	a.work.Go(func() {
		r, err := a.Wait(context.Background(), &agentv1.WaitRequest{Container: "c"})
		if err != nil {
			t.Error(err)
		}
		early <- r
	})
	if r, err := a.Start(ctx, &agentv1.StartRequest{Container: "c"}); err != nil || r.Pid == 0 {
		t.Fatalf("start: %v, %v", r, err)
	}
	if _, err := a.Start(ctx, &agentv1.StartRequest{Container: "c"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start again: %v", err)
	}
	if _, err := a.Delete(ctx, &agentv1.DeleteRequest{Container: "c"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete while it runs: %v", err)
	}
	testExec(t, a)
	if _, err := io.WriteString(in, "input\n"); err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(out); err != nil || string(text) != "started\ngot input\n" {
		t.Errorf("output %q, %v", text, err)
	}
	in.Close()
	if r := <-early; r.GetCode() != 3 || r.OomKilled {
		t.Errorf("wait that began before start: %v", r)
	}
	if r, err := a.Wait(ctx, &agentv1.WaitRequest{Container: "c"}); err != nil || r.Code != 3 {
		t.Errorf("wait: %v, %v", r, err)
	}
	if _, err := a.Signal(ctx, &agentv1.SignalRequest{Container: "c", Signal: 15}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("signal after the end: %v", err)
	}
}

func testExec(t *testing.T, a *Agent) {
	t.Helper()
	ctx := t.Context()
	req := &agentv1.ExecRequest{Container: "c", Id: "e", Process: []byte(`{"args":["x"]}`)}
	if _, err := a.Exec(ctx, req); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Exec(ctx, req); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the same exec: %v", err)
	}
	if _, err := a.Start(ctx, &agentv1.StartRequest{Container: "c", Exec: "e"}); err != nil {
		t.Fatal(err)
	}
	if r, err := a.Wait(ctx, &agentv1.WaitRequest{Container: "c", Exec: "e"}); err != nil || r.Code != 4 {
		t.Errorf("wait: %v, %v", r, err)
	}
	// What it wrote waits for whoever comes.
	out, reply := open(t, a, stdioHeader("c", "e", agentv1.StdioStream_STDOUT))
	if text, err := io.ReadAll(out); err != nil || string(text) != "exec\n" || reply.Error != "" {
		t.Errorf("output %q, %v, %v", text, err, reply)
	}
	if _, err := a.Delete(ctx, &agentv1.DeleteRequest{Container: "c", Exec: "e"}); err != nil {
		t.Error(err)
	}
	if _, err := a.Wait(ctx, &agentv1.WaitRequest{Container: "c", Exec: "e"}); !errdefs.IsNotFound(err) {
		t.Errorf("wait after delete: %v", err)
	}
}

// TestDeleteOfUnstartedExec: what was made for it must not fill the guest's memory.
func TestDeleteOfUnstartedExec(t *testing.T) {
	a, _ := newAgent(t, nil)
	ctx := t.Context()
	if _, err := a.Start(ctx, &agentv1.StartRequest{Container: "c"}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Exec(ctx, &agentv1.ExecRequest{Container: "c", Id: "e", Process: []byte(`{"args":["x"]}`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Delete(ctx, &agentv1.DeleteRequest{Container: "c", Exec: "e"}); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(a.Dir, "bundle", "exec-*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestDeleteWaitsForCreation: the host may give a creation up and delete what comes of it, while the guest is still at it.
func TestDeleteWaitsForCreation(t *testing.T) {
	a, _ := newAgent(t, nil)
	c := &container{id: "d", init: newProcess("d"), execs: map[string]*process{}}
	if _, err := a.reserve(c); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := a.Delete(short, &agentv1.DeleteRequest{Container: "d"}); codeOf(err) != codes.DeadlineExceeded {
		t.Errorf("delete during the creation: %v", err)
	}
	deleted := make(chan error, 1)
	go func() {
		_, err := a.Delete(t.Context(), &agentv1.DeleteRequest{Container: "d"})
		deleted <- err
	}()
	a.forget(c) // the creation failed
	close(c.init.made)
	if err := <-deleted; codeOf(err) != codes.NotFound {
		t.Errorf("delete after it: %v", err)
	}
}

func TestPIDNamespaces(t *testing.T) {
	a, _ := newAgent(t, nil)
	of := func(id string) *agentv1.PIDNamespace {
		return &agentv1.PIDNamespace{Of: &agentv1.PIDNamespace_Container{Container: id}}
	}
	if _, err := a.pidNamespace(of("c")); codeOf(err) != codes.FailedPrecondition {
		t.Errorf("of a container that was not started: %v", err)
	}
	if _, err := a.pidNamespace(of("nobody")); codeOf(err) != codes.NotFound {
		t.Errorf("of nobody: %v", err)
	}
	if _, err := a.Start(t.Context(), &agentv1.StartRequest{Container: "c"}); err != nil {
		t.Fatal(err)
	}
	file, err := a.pidNamespace(of("c"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()))
	if err != nil || !strings.HasPrefix(target, "pid:[") {
		t.Errorf("a running container's is %q, %v", target, err)
	}
	for _, own := range []*agentv1.PIDNamespace{nil, {Of: &agentv1.PIDNamespace_Own{Own: true}}} {
		if file, err := a.pidNamespace(own); file != nil || err != nil {
			t.Errorf("%v: %v, %v", own, file, err)
		}
	}
	if _, err := a.pidNamespace(&agentv1.PIDNamespace{}); err != nil {
		t.Errorf("an empty one is the pod's: %v", err)
	}
}

// TestProgramThatCannotRun: the container is created, its start fails and its exit code says why.
func TestProgramThatCannotRun(t *testing.T) {
	a, _ := newAgent(t, &runc.ProgramError{Code: 127, Message: `exec: "x": not found`})
	if _, err := a.Start(t.Context(), &agentv1.StartRequest{Container: "c"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("start: %v", err)
	}
	r, err := a.Wait(t.Context(), &agentv1.WaitRequest{Container: "c"})
	if err != nil || r.Code != 127 || r.Reason == "" {
		t.Errorf("wait: %v, %v", r, err)
	}
}

func TestCallsThatCannotWork(t *testing.T) {
	a, _ := newAgent(t, nil)
	ctx := t.Context()
	calls := map[string]func() error{
		"hello without a version": func() error { _, err := a.Hello(ctx, &agentv1.HelloRequest{}); return err },
		"signal 0":                func() error { _, err := a.Signal(ctx, &agentv1.SignalRequest{Container: "c"}); return err },
		"signal 65":               func() error { _, err := a.Signal(ctx, &agentv1.SignalRequest{Container: "c", Signal: 65}); return err },
		"bad id": func() error {
			_, err := a.CreateContainer(ctx, &agentv1.CreateContainerRequest{Id: "../x"})
			return err
		},
		"too much for a clock": func() error {
			_, err := a.AdjustClock(ctx, &agentv1.AdjustClockRequest{By: durationpb.New(2 * time.Second)})
			return err
		},
		"no time": func() error { _, err := a.SetClock(ctx, &agentv1.SetClockRequest{}); return err },
		"bad resources": func() error {
			_, err := a.Update(ctx, &agentv1.UpdateRequest{Container: "c", Resources: []byte("x")})
			return err
		},
		"huge terminal": func() error {
			_, err := a.ResizeTerminal(ctx, &agentv1.ResizeTerminalRequest{Container: "c", Width: 1 << 20})
			return err
		},
	}
	for name, call := range calls {
		if err := call(); !errdefs.IsInvalidArgument(err) || codeOf(err) != codes.InvalidArgument {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := a.Pids(ctx, &agentv1.PidsRequest{Container: "nobody"}); codeOf(err) != codes.NotFound {
		t.Errorf("an unknown container: %v", err)
	}
	if _, err := a.CreateContainer(ctx, &agentv1.CreateContainerRequest{Id: "c"}); codeOf(err) != codes.AlreadyExists {
		t.Errorf("the same id: %v", err)
	}
	if codeOf(errors.New("x")) != codes.Internal || codeOf(nil) != codes.OK {
		t.Error("an error without a class must not leave as Unknown")
	}
	a.sandbox.ready = false
	if _, err := a.CreateContainer(ctx, &agentv1.CreateContainerRequest{Id: "d"}); codeOf(err) != codes.FailedPrecondition {
		t.Errorf("before the sandbox is configured: %v", err)
	}
}

func TestDial(t *testing.T) {
	a, _ := newAgent(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a.work.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		text, _ := io.ReadAll(conn) // the end of the input comes through
		_, _ = conn.Write(bytes.ToUpper(text))
	})
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	dial := func(network, address string) (*net.UnixConn, *agentv1.StreamReply) {
		return open(t, a, &agentv1.StreamHeader{Kind: &agentv1.StreamHeader_Dial{Dial: &agentv1.DialStream{Network: network, Address: address}}})
	}
	host, reply := dial("tcp", "localhost:"+port)
	if reply.Error != "" {
		t.Fatal(reply)
	}
	if _, err := host.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := host.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(host); err != nil || string(got) != "HELLO" {
		t.Errorf("got %q, %v", got, err)
	}
	for address, want := range map[[2]string]codes.Code{
		{"tcp", "example.org:80"}:  codes.InvalidArgument,
		{"tcp", "127.0.0.1"}:       codes.InvalidArgument,
		{"udp", "127.0.0.1:1"}:     codes.InvalidArgument,
		{"unix", "/no/such/thing"}: codes.Unavailable,
	} {
		if _, reply := dial(address[0], address[1]); codes.Code(reply.Code) != want {
			t.Errorf("%v: got %v", address, reply)
		}
	}
}

// FuzzStream: whatever a stream begins with, the agent answers with an error or ends it.
func FuzzStream(f *testing.F) {
	for _, h := range []*agentv1.StreamHeader{{}, stdioHeader("c", "", 1), stdioHeader("", "\x00", 77)} {
		var b bytes.Buffer
		if err := agentv1.WriteMessage(&b, h); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{})
	a := New(Config{Log: slog.New(slog.DiscardHandler)})
	f.Fuzz(func(t *testing.T, wire []byte) {
		var h agentv1.StreamHeader
		if len(wire) > 4 && proto.Unmarshal(wire[4:], &h) == nil && h.GetDial() != nil {
			return // would dial
		}
		host, guest := socketPair(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			defer guest.Close()
			if a.serveStream(context.Background(), guest) == nil {
				t.Errorf("accepted %q", wire)
			}
		})
		if _, err := host.Write(wire); err == nil {
			_ = host.CloseWrite()
		}
		_, _ = io.Copy(io.Discard, host)
		wg.Wait()
	})
}
