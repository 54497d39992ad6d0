package taskshim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	cgroup1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

// deadPod makes what is left of a pod whose monitor and shims have gone: one container whose shim's binary is a script.
func deadPod(t *testing.T, script string, at stage) (monitorDir, bundleDir, socket string) {
	t.Helper()
	dir := t.TempDir()
	monitorDir, bundleDir, socket = filepath.Join(dir, "monitor"), filepath.Join(dir, "c1"), filepath.Join(dir, "shim.sock")
	binary := filepath.Join(dir, "containerd-shim-test-v1")
	err := errors.Join(
		os.Mkdir(monitorDir, 0o700), os.Mkdir(bundleDir, 0o700), os.Mkdir(records(monitorDir), 0o700), os.WriteFile(socket, nil, 0o600),
		os.WriteFile(binary, []byte("#!/bin/sh\n"+script), 0o700),
		bundle.WriteRecord(recordFile(records(monitorDir), "c1"), record{Binary: binary, Bundle: bundleDir, Stage: at, Answer: shimclient.Answer{Version: 2, Address: "unix://" + socket, Protocol: "ttrpc"}}),
	)
	if err != nil {
		t.Fatal(err)
	}
	return monitorDir, bundleDir, socket
}

func TestCleanup(t *testing.T) {
	for _, c := range []struct {
		name, script string
		at           stage
		called, fail bool
	}{
		{"made", "echo $* > called", stageMade, true, false},
		{"called", "echo $* > called; exit 1", stageCalled, true, false},
		{"never called", "echo $* > called", stageNone, false, false},
		{"refused", "echo no such thing >&2; exit 1", stageMade, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, bundleDir, socket := deadPod(t, c.script, c.at)
			err := Cleanup(t.Context(), dir, Options{Events: "/e.sock"})
			if c.fail {
				if err == nil || !strings.Contains(err.Error(), "no such thing") {
					t.Errorf("cleanup = %v", err)
				}
				if _, err := os.Stat(records(dir)); err != nil {
					t.Errorf("what is needed to try again: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			said, err := os.ReadFile(filepath.Join(bundleDir, "called"))
			if called := err == nil; called != c.called || called && string(said) != fmt.Sprintf("-namespace pistis -id c1 -bundle %s -address /e.sock delete\n", bundleDir) {
				t.Errorf("called with %q, %v", said, err)
			}
			for path, stays := range map[string]bool{dir: false, records(dir): false, socket: c.at == stageNone} {
				if _, err := os.Stat(path); stays != (err == nil) {
					t.Errorf("%s: %v", path, err)
				}
			}
			if err := Cleanup(t.Context(), dir, Options{}); err != nil {
				t.Errorf("again: %v", err)
			}
		})
	}
}

// TestCleanupWithoutBundle: a container whose bundle has gone was deleted.
func TestCleanupWithoutBundle(t *testing.T) {
	dir, bundleDir, _ := deadPod(t, "exit 1", stageMade)
	if err := os.RemoveAll(bundleDir); err != nil {
		t.Fatal(err)
	}
	if err := Cleanup(t.Context(), dir, Options{}); err != nil {
		t.Error(err)
	}
}

// TestCleanupEnds: what a binary leaves behind may hold its output open.
func TestCleanupEnds(t *testing.T) {
	dir, bundleDir, _ := deadPod(t, "mkfifo p; cat p &", stageMade)
	err := Cleanup(t.Context(), dir, Options{})
	if p, err := os.OpenFile(filepath.Join(bundleDir, "p"), os.O_RDWR, 0); err == nil {
		p.Close() // which ends it
	}
	if err != nil {
		t.Error(err)
	}
}

// TestSignalAfterShim: a container ends with its shim, also while that is being told.
func TestSignalAfterShim(t *testing.T) {
	p := newPod(nil, t.TempDir(), Options{})
	p.add("c1", record{Stage: stageMade})
	if err := p.Signal(t.Context(), task.ID{Container: "c1"}, uint32(unix.SIGKILL), true); !errdefs.IsNotFound(err) {
		t.Errorf("signal = %v", err)
	}
	if err := p.Update(t.Context(), "c1", nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("update = %v", err)
	}
}

// TestExecGivenUp: a start that its caller gives up may come to its end in the shim all the same.
func TestExecGivenUp(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	killed, deleted := make(chan struct{}), make(chan struct{})
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	server.Register("containerd.task.v2.Task", map[string]ttrpc.Method{
		"Exec": func(context.Context, func(any) error) (any, error) { return &emptypb.Empty{}, nil },
		"Start": func(ctx context.Context, _ func(any) error) (any, error) {
			giveUp()
			select {
			case <-killed:
			case <-ctx.Done():
			}
			return &taskapi.StartResponse{Pid: 7}, nil
		},
		"Kill": func(context.Context, func(any) error) (any, error) {
			close(killed)
			return &emptypb.Empty{}, nil
		},
		"Wait": func(context.Context, func(any) error) (any, error) {
			return &taskapi.WaitResponse{ExitedAt: timestamppb.Now()}, nil
		},
		"Delete": func(context.Context, func(any) error) (any, error) {
			select {
			case <-killed:
				close(deleted)
				return &taskapi.DeleteResponse{}, nil
			default:
				return nil, errgrpc.ToGRPC(fmt.Errorf("it runs: %w", errdefs.ErrFailedPrecondition))
			}
		},
	})
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(context.Background(), l) })
	defer serving.Wait()
	defer server.Close()
	shim, err := shimclient.Dial(t.Context(), shimclient.Answer{Version: 2, Address: "unix://" + socket, Protocol: "ttrpc"}, "container c1")
	if err != nil {
		t.Fatal(err)
	}
	defer shim.Close()
	c := newPod(nil, t.TempDir(), Options{}).add("c1", record{Stage: stageMade})
	ends, err := stdio.NewPipes([3]bool{})
	if err != nil {
		t.Fatal(err)
	}
	e := &execution{req: task.ExecRequest{ID: task.ID{Container: "c1", Exec: "e1"}, Process: []byte("{}")}, ends: ends}
	if _, err := c.runExec(ctx, &connection{Shim: shim}, e); !errors.Is(err, context.Canceled) {
		t.Errorf("start = %v", err)
	}
	select {
	case <-deleted:
	default:
		t.Error("the process was left in the shim")
	}
}

// TestWords: what a binary says becomes the reason that clients are told, and strings of gRPC are UTF-8.
func TestWords(t *testing.T) {
	for text, want := range map[string]string{"": "it gave no reason", " no\n": "no", "\xff no": "? no", "x" + strings.Repeat("é", maxWords): "x" + strings.Repeat("é", maxWords/2-1) + "?"} {
		if got := words(nil, []byte(text)); got != want {
			t.Errorf("%.20q: %q", text, got)
		}
	}
}

func TestClassified(t *testing.T) {
	for _, c := range []struct {
		err   error
		class func(error) bool
	}{
		{fmt.Errorf("gone: %w", errdefs.ErrNotFound), errdefs.IsNotFound},
		{fmt.Errorf("runc create failed: exec: \"x\": not found: %w", errdefs.ErrUnknown), errdefs.IsInvalidArgument},
		{fmt.Errorf("something: %w", errdefs.ErrUnknown), errdefs.IsInternal},
	} {
		if err := classified(c.err); !c.class(err) || errdefs.IsUnknown(err) || err.Error() == "" {
			t.Errorf("%v became %v", c.err, err)
		}
	}
	if classified(nil) != nil {
		t.Error("no error became one")
	}
}

func metrics(t *testing.T, kind string, m proto.Message) *anypb.Any {
	t.Helper()
	value, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: kind, Value: value}
}

func TestFromMetrics(t *testing.T) {
	v1 := metrics(t, "io.containerd.cgroups.v1.Metrics", &cgroup1.Metrics{
		CPU:    &cgroup1.CPUStat{Usage: &cgroup1.CPUUsage{Total: 7, User: 4, Kernel: 3}},
		Memory: &cgroup1.MemoryStat{TotalInactiveFile: 10, TotalRSS: 20, Usage: &cgroup1.MemoryEntry{Usage: 100, Limit: 1000}, Swap: &cgroup1.MemoryEntry{Usage: 105}},
		Pids:   &cgroup1.PidsStat{Current: 2, Limit: 9},
	})
	v2 := metrics(t, "types.googleapis.com/io.containerd.cgroups.v2.Metrics", &cgroup2.Metrics{
		CPU:    &cgroup2.CPUStat{UsageUsec: 7, UserUsec: 4, SystemUsec: 3},
		Memory: &cgroup2.MemoryStat{InactiveFile: 10, Anon: 20, Usage: 100, UsageLimit: 1000, SwapUsage: 5},
		Pids:   &cgroup2.PidsStat{Current: 2, Limit: 9},
	})
	for name, c := range map[string]struct {
		any *anypb.Any
		cpu uint64
	}{"v1": {v1, 7}, "v2": {v2, 7000}} {
		u, err := fromMetrics(c.any)
		if err != nil {
			t.Fatal(err)
		}
		m := u.Memory
		if u.CPU.UsageNS != c.cpu || m.Usage != 100 || m.WorkingSet != 90 || m.RSS != 20 || m.Available != 910 || m.Swap != 5 || u.Pids != 2 || u.PidsLimit != 9 {
			t.Errorf("%s: %+v", name, u)
		}
	}
	if _, err := fromMetrics(&anypb.Any{TypeUrl: "hcs"}); !errdefs.IsNotImplemented(err) {
		t.Errorf("other metrics: %v", err)
	}
}

func TestParseDeleted(t *testing.T) {
	at := time.Now().Round(0)
	out, err := proto.Marshal(&taskapi.DeleteResponse{ExitStatus: 3, ExitedAt: timestamppb.New(at)})
	if err != nil {
		t.Fatal(err)
	}
	exit, err := parseDeleted(out)
	if err != nil || exit.Code != 3 || !exit.At.Equal(at) {
		t.Errorf("%+v, %v", exit, err)
	}
	if exit, err := parseDeleted([]byte("no protobuf")); err == nil {
		t.Errorf("words became %+v", exit)
	}
}

// TestEvents: a shim may tell what it likes.
func TestEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s", "events.sock")
	for range 2 { // the second one comes after a daemon that died
		events, err := Serve(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := events.Close(); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFIFOsOf(t *testing.T) {
	for _, c := range []struct {
		stdin, output, terminal bool
		want                    shimclient.FIFOs
	}{
		{false, false, false, shimclient.FIFOs{}},
		{true, true, false, shimclient.FIFOs{Stdin: "/d/0", Stdout: "/d/1", Stderr: "/d/2"}},
		{true, true, true, shimclient.FIFOs{Stdin: "/d/0", Stdout: "/d/1"}},
	} {
		if got := fifosOf("/d", c.stdin, c.output, c.terminal); got != c.want {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

func TestParseInfo(t *testing.T) {
	info := func(features string) []byte {
		out, err := proto.Marshal(&types.RuntimeInfo{Name: "r", Features: &anypb.Any{Value: []byte(features)}})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for text, want := range map[string]Abilities{
		"":   {},
		"{}": {},
		`{"mountOptions":["ro","rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}`: {RecursiveReadOnly: true, IDMaps: true},
		`{"mountOptions":["ro"],"linux":{"mountExtensions":{"idmap":{"enabled":false}}}}`:      {},
	} {
		if got, err := parseInfo(info(text)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	if _, err := parseInfo(info("no JSON")); !errdefs.IsInternal(err) {
		t.Errorf("words: %v", err)
	}
	if _, err := Ask(t.Context(), "/no/such/shim", nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("a missing shim: %v", err)
	}
}
