package shimclient_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/shim"
	"github.com/pistis-run/pistis/internal/shim/bootstrap"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

// fakeShim makes this test binary a shim whose VMs are fakes: a real process with real sockets, and no guest. Its
// value may be silent, for a guest that never answers.
const fakeShim = "PISTIS_TEST_FAKE_SHIM"

func TestMain(m *testing.M) {
	mode := os.Getenv(fakeShim)
	if mode == "" {
		os.Exit(m.Run())
	}
	os.Exit(bootstrap.Main(shim.Options{
		Drivers:        map[string]hypervisor.Driver{"fake": &vmtest.Driver{Agent: &vmtest.Agent{}, NoDialer: mode == "silent", Console: "no init found\n"}},
		GuestSpec:      func(s *specs.Spec) (*specs.Spec, error) { return s, nil },
		GuestResources: func(r *specs.LinuxResources) (*specs.LinuxResources, error) { return r, nil },
	}, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func fakeConfig(t *testing.T, mode string) shimclient.LaunchConfig {
	t.Helper()
	t.Setenv(fakeShim, mode)
	dir := t.TempDir()
	for _, name := range []string{"kernel", "layer"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return shimclient.LaunchConfig{
		Binary: os.Args[0], ID: "pod1", Dir: filepath.Join(dir, "b"),
		Options: &shimv1.SandboxOptions{Vm: &shimv1.VMOptions{
			Hypervisor: "fake", Kernel: filepath.Join(dir, "kernel"), Acceleration: "tcg", Vcpus: 1, MemoryBytes: 128 << 20,
			BootTimeout: durationpb.New(10 * time.Second),
		}},
	}
}

func launchFake(t *testing.T) (*shimclient.Client, shimclient.LaunchConfig) {
	t.Helper()
	cfg := fakeConfig(t, "yes")
	c, err := shimclient.Launch(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		if err := shimclient.Cleanup(context.Background(), cfg.Dir); err != nil {
			t.Error(err)
		}
	})
	return c, cfg
}

func createSleeper(t *testing.T, c *shimclient.Client, cfg shimclient.LaunchConfig) {
	t.Helper()
	dir := filepath.Dir(cfg.Dir)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"process":{"args":["sleep"],"cwd":"/"},"root":{"path":"x"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), task.CreateRequest{ID: "c1", Bundle: dir, Layers: []string{filepath.Join(dir, "layer")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(t.Context(), task.ID{Container: "c1"}); err != nil {
		t.Fatal(err)
	}
}

func TestLaunchAndStop(t *testing.T) {
	c, cfg := launchFake(t)
	info, err := c.Info(t.Context())
	if err != nil || info.SandboxId != "pod1" || info.Vm.Version != "fake 1.0" || len(info.Vm.Phases) != 4 {
		t.Errorf("info = %v, %v", info, err)
	}
	if int(info.ShimPid) == os.Getpid() || info.ShimPid == 0 {
		t.Errorf("shim pid = %d", info.ShimPid)
	}
	if sid, err := unix.Getsid(int(info.ShimPid)); sid != int(info.ShimPid) || err != nil {
		t.Errorf("session of the shim = %d, %v", sid, err)
	}
	if _, err := shimclient.Launch(t.Context(), cfg); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second launch = %v", err)
	}
	if err := c.Stop(t.Context(), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	<-c.Done()
	if err := c.Stop(t.Context(), time.Second); err != nil {
		t.Errorf("second stop = %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "*.sock")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestLaunchFails wants every failure told, and nothing left that runs.
func TestLaunchFails(t *testing.T) {
	tests := []struct {
		name, mode string
		change     func(*shimclient.LaunchConfig)
		want       string
		class      func(error) bool
	}{
		{"no binary", "yes", func(c *shimclient.LaunchConfig) { c.Binary = "/no/such/shim" }, "/no/such/shim", errdefs.IsNotFound},
		{"not a shim", "yes", func(c *shimclient.LaunchConfig) { c.Binary = "/bin/true" }, "answered", nil},
		{"unknown hypervisor", "yes", func(c *shimclient.LaunchConfig) { c.Options.Vm.Hypervisor = "xen" }, `"xen"`, errdefs.IsInvalidArgument},
		{"no kernel", "yes", func(c *shimclient.LaunchConfig) { c.Options.Vm.Kernel = "/no/kernel" }, "/no/kernel", errdefs.IsFailedPrecondition},
		{"silent guest", "silent", func(c *shimclient.LaunchConfig) { c.Options.Vm.BootTimeout = durationpb.New(100 * time.Millisecond) }, "no init found", isDeadline},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg := fakeConfig(t, tt.mode)
			tt.change(&cfg)
			c, err := shimclient.Launch(t.Context(), cfg)
			if err == nil {
				c.Kill(t.Context())
				t.Fatal("it launched")
			}
			if !strings.Contains(err.Error(), tt.want) || tt.class != nil && !tt.class(err) {
				t.Errorf("error = %v", err)
			}
			checkEnded(t, cfg)
		})
	}
}

// checkEnded: what a failed launch leaves is a directory without processes, for Cleanup.
func checkEnded(t *testing.T, cfg shimclient.LaunchConfig) {
	t.Helper()
	if alive, err := bundle.Dir(cfg.Dir).Locked(); alive || err != nil {
		t.Errorf("the shim lives: %v, %v", alive, err)
	}
	if err := shimclient.Cleanup(t.Context(), cfg.Dir); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	if _, err := os.Stat(cfg.Dir); err == nil {
		t.Error("the bundle is left")
	}
}

func isDeadline(err error) bool { return errors.Is(err, context.DeadlineExceeded) }

// TestLaunchCancelled gives up while the guest boots.
func TestLaunchCancelled(t *testing.T) {
	cfg := fakeConfig(t, "silent")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		// The VMM's record is the sign that the boot is under way.
		for {
			if _, err := bundle.Dir(cfg.Dir).ReadVMM(); err == nil {
				cancel()
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if _, err := shimclient.Launch(ctx, cfg); !errors.Is(err, context.Canceled) {
		t.Errorf("launch = %v", err)
	}
	checkEnded(t, cfg)
}

// TestLaunchCancelledInStart: the start command is not cut short, or it could leave a shim without a record of it.
func TestLaunchCancelledInStart(t *testing.T) {
	cfg := fakeConfig(t, "yes")
	dir := t.TempDir()
	begun, goOn, recorded := filepath.Join(dir, "begun"), filepath.Join(dir, "go"), filepath.Join(dir, "recorded")
	if err := unix.Mkfifo(begun, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(goOn, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Binary = filepath.Join(dir, "shim")
	script := fmt.Sprintf("#!/bin/sh\necho >%s\nread x <%s\ntouch %s\n", begun, goOn, recorded)
	if err := os.WriteFile(cfg.Binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := shimclient.Launch(ctx, cfg)
		ended <- err
	}()
	if _, err := os.ReadFile(begun); err != nil {
		t.Fatal(err)
	}
	cancel()
	// With a reader of our own too, writing does not depend on one that was killed.
	f, err := os.OpenFile(goOn, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("on\n"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("it was launched")
	}
	if _, err := os.Stat(recorded); err != nil {
		t.Errorf("the start command was cut short: %v", err)
	}
	checkEnded(t, cfg)
}

func TestReconnect(t *testing.T) {
	c, cfg := launchFake(t)
	createSleeper(t, c, cfg)
	c.Close()
	again, err := shimclient.Connect(t.Context(), cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.ID() != "pod1" {
		t.Errorf("id = %s", again.ID())
	}
	if state, err := again.State(t.Context(), task.ID{Container: "c1"}); state != "running" || err != nil {
		t.Errorf("state = %s, %v", state, err)
	}
}

// TestSIGTERM ends the shim cleanly: whoever waits is answered, and no socket is left.
func TestSIGTERM(t *testing.T) {
	c, cfg := launchFake(t)
	createSleeper(t, c, cfg)
	record, err := bundle.Dir(cfg.Dir).ReadShim()
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan task.Exit, 1)
	go func() {
		exit, err := c.Wait(t.Context(), task.ID{Container: "c1"})
		if err != nil {
			t.Error(err)
		}
		waited <- exit
	}()
	handle, err := record.Process.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	if err := handle.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := <-waited; exit.Code != 255 || exit.Reason == "" {
		t.Errorf("exit = %+v", exit)
	}
	<-c.Done()
	if left, _ := filepath.Glob(filepath.Join(cfg.Dir, "*.sock")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestKilledShim answers everything that waits, and makes every later call Unavailable.
func TestKilledShim(t *testing.T) {
	c, cfg := launchFake(t)
	createSleeper(t, c, cfg)
	record, err := bundle.Dir(cfg.Dir).ReadShim()
	if err != nil {
		t.Fatal(err)
	}
	attached := make(chan error, 1)
	go func() { attached <- c.Attach(t.Context(), task.ID{Container: "c1"}, task.Stdio{Stdout: io.Discard}) }()
	if err := record.Process.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit, err := c.Wait(t.Context(), task.ID{Container: "c1"}); err != nil || exit.Code != 255 || !strings.Contains(exit.Reason, "the shim ended") {
		t.Errorf("exit = %+v, %v", exit, err)
	}
	if exit, err := c.WaitSandbox(t.Context()); err != nil || exit.Code != 255 {
		t.Errorf("sandbox's exit = %+v, %v", exit, err)
	}
	if err := <-attached; !errdefs.IsUnavailable(err) {
		t.Errorf("attach = %v", err)
	}
	if _, err := c.Start(t.Context(), task.ID{Container: "c1"}); !errdefs.IsUnavailable(err) {
		t.Errorf("start = %v", err)
	}
	if _, err := c.Dial(t.Context(), "tcp", "localhost:7"); !errdefs.IsUnavailable(err) {
		t.Errorf("dial = %v", err)
	}
	if _, err := shimclient.Connect(t.Context(), cfg.Dir); !errdefs.IsUnavailable(err) {
		t.Errorf("connect = %v", err)
	}
	for range 2 {
		if err := shimclient.Cleanup(t.Context(), cfg.Dir); err != nil {
			t.Errorf("cleanup = %v", err)
		}
	}
}

// TestCloseEndsWaits: closing a client is no reason to report exits.
func TestCloseEndsWaits(t *testing.T) {
	c, cfg := launchFake(t)
	createSleeper(t, c, cfg)
	waited := make(chan error, 1)
	go func() {
		_, err := c.Wait(context.Background(), task.ID{Container: "c1"})
		waited <- err
	}()
	c.Close()
	if err := <-waited; !errdefs.IsUnavailable(err) {
		t.Errorf("wait = %v", err)
	}
}

// TestStrangeStreams says things to the stream socket that no client of ours says.
func TestStrangeStreams(t *testing.T) {
	c, cfg := launchFake(t)
	for _, bad := range []string{"\xff\xff\xff\xff", "\x00\x00\x00\x02\xff\xff", "\x00\x00\x00\x00", "GET / HTTP/1.0\r\n\r\n"} {
		conn, err := net.Dial("unix", bundle.Dir(cfg.Dir).StreamSocket())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(conn, bad)
		io.Copy(io.Discard, conn)
		conn.Close()
	}
	if _, err := c.Info(t.Context()); err != nil {
		t.Errorf("the shim does not answer any more: %v", err)
	}
}
