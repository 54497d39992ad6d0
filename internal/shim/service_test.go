package shim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	statsv1 "github.com/pistis-run/pistis/api/stats/v1"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

func TestContainerLife(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	id := task.ID{Container: "c1"}
	user, err := p.Create(t.Context(), p.request(t, "c1", "echo", "hello"))
	if err != nil || user.UID != 7 || user.GID != 8 {
		t.Fatalf("create = %+v, %v", user, err)
	}
	if _, err := p.Create(t.Context(), p.request(t, "c1", "echo")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create = %v", err)
	}
	if state, _ := p.State(t.Context(), id); state != "created" {
		t.Errorf("state = %s", state)
	}
	pid, err := p.Start(t.Context(), id)
	if err != nil || pid != 42 {
		t.Fatalf("start = %d, %v", pid, err)
	}
	if exit := p.wait(t, id); exit.Code != 0 || exit.At.IsZero() {
		t.Errorf("exit = %+v", exit)
	}
	if text := p.log(t, "c1"); !strings.HasSuffix(text, "stdout F hello\n") {
		t.Errorf("log = %q", text)
	}
	if _, err := p.Start(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start of an ended one = %v", err)
	}
	if err := p.Signal(t.Context(), id, 9, false); !errdefs.IsNotFound(err) {
		t.Errorf("signal of an ended one = %v", err)
	}
	if err := p.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := p.Delete(t.Context(), id); !errdefs.IsNotFound(err) {
		t.Errorf("second delete = %v", err)
	}
	if n := p.driver.Machines()[0].Disks(); n != 0 {
		t.Errorf("%d disks are attached still", n)
	}
}

func TestWaitComesAfterTheOutput(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	p.run(t, "c1", "lines", "50000")
	p.wait(t, task.ID{Container: "c1"})
	if n := strings.Count(p.log(t, "c1"), "\n"); n != 50000 {
		t.Errorf("%d lines when Wait returned, want 50000", n)
	}
}

func TestExec(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	p.run(t, "c1", "sleep")
	id := task.ID{Container: "c1", Exec: "e1"}
	if err := p.exec(t, id, true, "cat"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	attached := make(chan error, 1)
	go func() {
		attached <- p.Attach(t.Context(), id, task.Stdio{Stdin: strings.NewReader("through and back"), Stdout: &out, Stderr: io.Discard})
	}()
	if _, err := p.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := <-attached; err != nil || out.String() != "through and back" {
		t.Errorf("attach = %v, output %q", err, out.String())
	}
	if exit := p.wait(t, id); exit.Code != 0 {
		t.Errorf("exit = %+v", exit)
	}
	if err := p.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
	code := task.ID{Container: "c1", Exec: "e2"}
	if err := p.exec(t, code, false, "exit", "3"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Start(t.Context(), code); err != nil {
		t.Fatal(err)
	}
	if exit := p.wait(t, code); exit.Code != 3 {
		t.Errorf("exit = %+v", exit)
	}
}

// TestExecClientGone lets the client of an exec go away in the middle: the exec must end all the same.
func TestExecClientGone(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	p.run(t, "c1", "sleep")
	id := task.ID{Container: "c1", Exec: "e1"}
	if err := p.exec(t, id, true, "lines", "200000"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	attached := make(chan error, 1)
	r, w := io.Pipe()
	go func() { attached <- p.Attach(ctx, id, task.Stdio{Stdin: strings.NewReader(""), Stdout: w}) }()
	if _, err := p.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r.Read(make([]byte, 10))
	cancel()
	r.Close()
	if err := <-attached; !errors.Is(err, context.Canceled) {
		t.Errorf("attach = %v", err)
	}
	p.wait(t, id)
}

// TestKillOfExecThatStarts: whoever gives up the start of an exec and kills it finds it killed, and not running for ever.
func TestKillOfExecThatStarts(t *testing.T) {
	starting, goOn := make(chan struct{}), make(chan struct{})
	var hold, asked atomic.Bool
	agent := &vmtest.Agent{Intercept: func(method string) error {
		switch {
		case method == "Start" && hold.Load():
			close(starting)
			<-goOn
		case method == "Signal":
			asked.Store(true)
		}
		return nil
	}}
	p := ready(t, &vmtest.Driver{Agent: agent})
	p.run(t, "c1", "sleep")
	id := task.ID{Container: "c1", Exec: "e1"}
	if err := p.exec(t, id, false, "sleep"); err != nil {
		t.Fatal(err)
	}
	hold.Store(true)
	ctx, giveUp := context.WithCancel(t.Context())
	started := make(chan error, 1)
	go func() {
		_, err := p.Start(ctx, id)
		started <- err
	}()
	<-starting
	giveUp()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("the start that was given up: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.service.Kill(short, &taskapi.KillRequest{ID: id.Container, ExecID: id.Exec, Signal: 9}); !errors.Is(err, context.DeadlineExceeded) || asked.Load() {
		t.Errorf("before it is there: %v, the guest was asked: %v", err, asked.Load())
	}
	close(goOn)
	if err := p.Signal(t.Context(), id, 9, false); err != nil {
		t.Fatal(err)
	}
	if exit := p.wait(t, id); exit.Code != 137 {
		t.Errorf("exit = %+v", exit)
	}
}

func TestAttach(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	req := p.request(t, "c1", "cat")
	req.Stdin, req.StdinOnce = true, true
	if _, err := p.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	id := task.ID{Container: "c1"}
	in, input := io.Pipe()
	defer in.Close()
	var out bytes.Buffer
	attached := make(chan error, 1)
	go func() { attached <- p.Attach(t.Context(), id, task.Stdio{Stdin: in, Stdout: &out}) }()
	fmt.Fprint(input, "before start\n")
	if _, err := p.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(input, "after\n")
	input.Close() // stdin_once: cat ends with it
	if err := <-attached; err != nil || out.String() != "before start\nafter\n" {
		t.Errorf("attach = %v, %q", err, out.String())
	}
	p.wait(t, id)
	if text := p.log(t, "c1"); strings.Count(text, "\n") != 2 {
		t.Errorf("log = %q", text)
	}
	if err := p.Attach(t.Context(), id, task.Stdio{Stdout: io.Discard}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach to an ended one = %v", err)
	}
	p.run(t, "c2", "sleep")
	if err := p.Attach(t.Context(), task.ID{Container: "c2"}, task.Stdio{Stdin: in}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("stdin of one without = %v", err)
	}
}

func TestDial(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	conn, err := p.Dial(t.Context(), "tcp", "localhost:7")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "echo")
	conn.(*net.UnixConn).CloseWrite()
	if data, err := io.ReadAll(conn); string(data) != "echo" || err != nil {
		t.Errorf("read %q, %v", data, err)
	}
	if _, err := p.Dial(t.Context(), "tcp", "localhost:8"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("closed port = %v", err)
	}
}

func TestReopenLog(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	req := p.request(t, "c1", "cat")
	req.Stdin = true
	if _, err := p.Create(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	id := task.ID{Container: "c1"}
	if _, err := p.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(req.LogPath, req.LogPath+".1"); err != nil {
		t.Fatal(err)
	}
	if err := p.ReopenLog(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	in, input := io.Pipe()
	seen, out := io.Pipe()
	go p.Attach(t.Context(), id, task.Stdio{Stdin: in, Stdout: out})
	fmt.Fprintln(input, "new")
	io.ReadFull(seen, make([]byte, 4))
	if text := p.log(t, "c1"); !strings.HasSuffix(text, "F new\n") {
		t.Errorf("log = %q", text)
	}
	in.Close()
	seen.Close()
	if err := p.ReopenLog(t.Context(), "nobody"); !errdefs.IsNotFound(err) {
		t.Errorf("unknown container = %v", err)
	}
}

// TestVMDies wants every wait answered with the reason, and Delete and Stop to work afterwards.
func TestVMDies(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	p.run(t, "c1", "sleep")
	p.create(t, "c2", "sleep")
	p.driver.Machines()[0].End(errors.New("signal: killed"))
	for _, c := range []string{"c1", "c2"} {
		if exit := p.wait(t, task.ID{Container: c}); exit.Code != 255 || !strings.Contains(exit.Reason, "the virtual machine ended: signal: killed") {
			t.Errorf("%s: exit = %+v", c, exit)
		}
	}
	exit, err := p.WaitSandbox(t.Context())
	if err != nil || exit.Code != 255 || !strings.Contains(exit.Reason, "signal: killed") {
		t.Errorf("sandbox: %+v, %v", exit, err)
	}
	status, err := p.service.SandboxStatus(t.Context(), &sandboxv1.SandboxStatusRequest{SandboxId: "pod1", Verbose: true})
	if err != nil || status.State != "SANDBOX_NOTREADY" {
		t.Errorf("status = %v, %v", status, err)
	}
	if _, err := p.Create(t.Context(), p.request(t, "c3", "echo")); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "signal: killed") {
		t.Errorf("create afterwards = %v", err)
	}
	for _, c := range []string{"c1", "c2"} {
		if err := p.Delete(t.Context(), task.ID{Container: c}); err != nil {
			t.Errorf("%s: delete = %v", c, err)
		}
	}
	if _, err := p.service.StopSandbox(t.Context(), &sandboxv1.StopSandboxRequest{SandboxId: "pod1"}); err != nil {
		t.Errorf("stop = %v", err)
	}
}

func TestStartFails(t *testing.T) {
	p := ready(t, &vmtest.Driver{Agent: &vmtest.Agent{Intercept: func(method string) error {
		if method == "Start" {
			return errors.New("exec format error")
		}
		return nil
	}}})
	p.create(t, "c1", "echo")
	id := task.ID{Container: "c1"}
	if _, err := p.Start(t.Context(), id); err == nil || !strings.Contains(err.Error(), "exec format error") {
		t.Errorf("start = %v", err)
	}
	// People read this: one sentence, without ids that they know already.
	if exit := p.wait(t, id); exit.Code != 128 || !strings.HasPrefix(exit.Reason, "guest: exec format error") {
		t.Errorf("exit = %+v", exit)
	}
	if err := p.Delete(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// TestHostileAgent gives answers that no honest agent gives.
func TestHostileAgent(t *testing.T) {
	agent := &vmtest.Agent{Answer: func(method string, answer any) any {
		switch a := answer.(type) {
		case *agentv1.WaitResponse:
			a.Code, a.Reason = 1<<31, "\x1b[2Jevil\n"+strings.Repeat("A", 100<<10)
		case *agentv1.StatsResponse:
			a.Containers = append(a.Containers, &agentv1.ContainerStats{Id: "somebody else's"}, nil)
			a.GuestIo = &statsv1.PSI{Full: &statsv1.PSIData{TotalUs: 7, Avg10: math.NaN(), Avg60: -1, Avg300: 5}}
		case *agentv1.DeleteResponse:
			a.Disks = append(a.Disks, nil, &agentv1.DiskAddress{}, &agentv1.DiskAddress{Address: &agentv1.DiskAddress_Serial{Serial: "x"}})
		}
		return answer
	}}
	p := ready(t, &vmtest.Driver{Agent: agent})
	p.run(t, "c1", "echo")
	exit := p.wait(t, task.ID{Container: "c1"})
	if exit.Code != 255 || len(exit.Reason) > 8<<10 || strings.ContainsAny(exit.Reason, "\x1b\n") {
		t.Errorf("exit = %d, reason of %d bytes", exit.Code, len(exit.Reason))
	}
	stats, err := p.Stats(t.Context())
	if err != nil || len(stats.Containers) != 1 || stats.IOPSI == nil || stats.IOPSI.Full != (task.PSIData{Total: 7, Avg300: 5}) {
		t.Errorf("stats = %+v, %v", stats, err)
	}
	if err := p.Delete(t.Context(), task.ID{Container: "c1"}); err != nil {
		t.Error(err)
	}
}

// TestCounters: what the VMM counts is told without the guest.
func TestCounters(t *testing.T) {
	p := newPod(t, &vmtest.Driver{})
	if _, err := p.Counters(t.Context()); err == nil {
		t.Error("counters of no VM")
	}
	p = ready(t, &vmtest.Driver{})
	got, err := p.Counters(t.Context())
	if err != nil || len(got) != 2 || got[0].CounterName != (task.CounterName{Kind: "operations", Part: "disk", Direction: "in"}) ||
		got[1].CounterName != (task.CounterName{Kind: "failures", Part: "disk"}) {
		t.Errorf("counters = %+v, %v", got, err)
	}
}

func TestSandboxStates(t *testing.T) {
	p := newPod(t, &vmtest.Driver{})
	start := func() error {
		_, err := p.service.StartSandbox(t.Context(), &sandboxv1.StartSandboxRequest{SandboxId: "pod1"})
		return err
	}
	if err := start(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start before create = %v", err)
	}
	if _, err := p.service.PingSandbox(t.Context(), &sandboxv1.PingRequest{SandboxId: "other"}); !errdefs.IsNotFound(err) {
		t.Errorf("somebody else's sandbox = %v", err)
	}
	if _, err := p.Create(t.Context(), p.request(t, "c1", "echo")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("container before start = %v", err)
	}
	if err := p.createSandbox(t); err != nil {
		t.Fatal(err)
	}
	if err := p.createSandbox(t); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second create = %v", err)
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := p.service.StopSandbox(t.Context(), &sandboxv1.StopSandboxRequest{SandboxId: "pod1"}); err != nil {
			t.Fatal(err)
		}
	}
	if exit, err := p.WaitSandbox(t.Context()); err != nil || !strings.Contains(exit.Reason, "stopped") {
		t.Errorf("exit = %+v, %v", exit, err)
	}
}

// TestStopDuringBoot stops a sandbox whose guest never answers.
func TestStopDuringBoot(t *testing.T) {
	p := newPod(t, &vmtest.Driver{NoDialer: true})
	if err := p.createSandbox(t); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() {
		_, err := p.service.StartSandbox(t.Context(), &sandboxv1.StartSandboxRequest{SandboxId: "pod1"})
		started <- err
	}()
	for len(p.driver.Machines()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if _, err := p.service.StopSandbox(t.Context(), &sandboxv1.StopSandboxRequest{SandboxId: "pod1"}); err != nil {
		t.Error(err)
	}
	if err := <-started; err == nil {
		t.Error("it started")
	}
}

func TestShutdown(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	if _, err := p.service.ShutdownSandbox(t.Context(), &sandboxv1.ShutdownSandboxRequest{SandboxId: "pod1"}); err != nil {
		t.Fatal(err)
	}
	<-p.service.Quit()
}

// TestFIFOs uses the stdio of containerd's own clients.
func TestFIFOs(t *testing.T) {
	p := ready(t, &vmtest.Driver{})
	fifo := func(name string) string {
		path := filepath.Join(p.dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	p.run(t, "c1", "sleep")
	in, out := fifo("in"), fifo("out")
	process := []byte(`{"args":["cat"],"cwd":"/"}`)
	err := p.service.Exec(t.Context(), execRequest("c1", "e1", process, in, out))
	if err != nil {
		t.Fatal(err)
	}
	id := task.ID{Container: "c1", Exec: "e1"}
	if _, err := p.Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(out, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(w, "by fifo")
	w.Close()
	if err := p.service.CloseIO(t.Context(), closeRequest("c1", "e1")); err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(r); string(data) != "by fifo" || err != nil {
		t.Errorf("read %q, %v", data, err)
	}
	p.wait(t, id)
	if err := p.service.Exec(t.Context(), execRequest("c1", "e2", process, "", "/no/such/fifo")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("missing FIFO = %v", err)
	}
}
