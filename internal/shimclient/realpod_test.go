package shimclient_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
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
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/task"
)

// realPod is a pod in a real guest: the real shim, the real VMM, the real agent.
type realPod struct {
	*shimclient.Client
	dir    string // the test's
	bundle string
	config shimclient.LaunchConfig
	layer  string
}

// launchReal boots one, or skips the test with the reason.
func launchReal(t *testing.T) *realPod {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED, no real guest: short tests were asked for")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, no real guest: needs root")
	}
	guest := os.Getenv("PISTIS_GUEST")
	if guest == "" {
		guest = filepath.Join("..", "..", ".cache", "guest")
	}
	guest, err := filepath.Abs(guest)
	if err != nil {
		t.Fatal(err)
	}
	for _, need := range []func() error{
		func() error { _, err := os.Stat(filepath.Join(guest, "initrd")); return err },
		func() error { _, err := exec.LookPath("qemu-system-x86_64"); return err },
		func() error { _, err := exec.LookPath("mkfs.ext4"); return err },
		func() error { _, err := os.Stat("/bin/busybox"); return err },
	} {
		if err := need(); err != nil {
			t.Skipf("SKIPPED, no real guest: %v", err)
		}
	}
	p := &realPod{dir: t.TempDir()}
	p.bundle = filepath.Join(p.dir, "b")
	p.layer = makeLayer(t, p.dir)
	p.config = shimclient.LaunchConfig{
		Binary: buildShim(t), ID: "realpod", Dir: p.bundle, Debug: true,
		Options: &shimv1.SandboxOptions{
			Hostname: "realpod", Hosts: []byte("127.0.0.1 localhost\n"), ResolvConf: []byte("nameserver 192.0.2.1\n"),
			Scratch: makeScratch(t, p.dir), Cgroup: fmt.Sprintf("pistis-test-%d", os.Getpid()),
			Vm: &shimv1.VMOptions{
				Hypervisor: "qemu", Kernel: filepath.Join(guest, "vmlinuz"), Initrd: filepath.Join(guest, "initrd"),
				Acceleration: "tcg", Vcpus: 1, MemoryBytes: 256 << 20, BootTimeout: durationpb.New(2 * time.Minute),
				Uid: 2_000_077, Gid: 2_000_077,
			},
		},
	}
	// The VMM's own user must get through the test's directories.
	for dir := p.dir; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	p.Client, err = shimclient.Launch(ctx, p.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		p.Client.Close()
		if t.Failed() {
			for _, name := range []string{"shim.log", "console.log"} {
				data, _ := os.ReadFile(filepath.Join(p.bundle, name))
				t.Logf("%s:\n%s", name, data[max(0, len(data)-4000):])
			}
		}
		if err := shimclient.Cleanup(ctx, p.bundle); err != nil {
			t.Error(err)
		}
	})
	return p
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func buildShim(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "containerd-shim-pistis-v2")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "../../cmd/containerd-shim-pistis-v2")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build shim: %v\n%s", err, out)
	}
	return path
}

// makeLayer is an image layer with nothing but busybox.
func makeLayer(t *testing.T, dir string) string {
	t.Helper()
	root, layer := filepath.Join(dir, "root"), filepath.Join(dir, "layer.ext4")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", "/bin/busybox", filepath.Join(root, "bin/busybox"))
	run(t, "/bin/busybox", "--install", "-s", filepath.Join(root, "bin"))
	for _, applet := range []string{"sh", "cat", "echo", "sleep", "seq", "id", "ps", "nc", "kill", "stty", "yes", "head", "wc", "dd", "hostname", "ls", "true", "touch"} {
		link := filepath.Join(root, "bin", applet)
		os.Remove(link)
		if err := os.Symlink("busybox", link); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"etc/passwd": "root:x:0:0::/:/bin/sh\nweb:x:101:102::/:/bin/sh\n", "etc/group": "root:x:0:\nweb:x:102:\nextra:x:103:web\n"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "mkfs.ext4", "-q", "-F", "-d", root, "-O", "^has_journal", layer, "16M")
	return layer
}

func makeScratch(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "scratch.ext4")
	run(t, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,nodiscard", "-O", "^has_journal", path, "512M")
	return path
}

// create makes a container that runs sh -c script.
func (p *realPod) create(t *testing.T, id, script string, change func(*task.CreateRequest, *specs.Spec)) task.User {
	t.Helper()
	spec := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: &specs.LinuxCapabilities{}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}}},
	}
	dir := filepath.Join(p.dir, "c-"+id)
	req := task.CreateRequest{ID: id, Bundle: dir, Spec: spec, Layers: []string{p.layer}, LogPath: filepath.Join(p.dir, id+".log")}
	if change != nil {
		change(&req, spec)
	}
	spec.Process.Terminal = req.Terminal
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	user, err := p.Create(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return user
}

func (p *realPod) log(t *testing.T, id string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, id+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (p *realPod) start(t *testing.T, id string) {
	t.Helper()
	if _, err := p.Start(t.Context(), task.ID{Container: id}); err != nil {
		t.Fatal(err)
	}
}

func (p *realPod) wait(t *testing.T, id task.ID) task.Exit {
	t.Helper()
	exit, err := p.Wait(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

// exec runs a command to its end.
func (p *realPod) exec(t *testing.T, container, id, script, input string) (stdout, stderr string, exit task.Exit) {
	t.Helper()
	process, err := json.Marshal(map[string]any{"args": []string{"/bin/sh", "-c", script}, "cwd": "/", "env": []string{"PATH=/bin"}})
	if err != nil {
		t.Fatal(err)
	}
	eid := task.ID{Container: container, Exec: id}
	if err := p.Exec(t.Context(), task.ExecRequest{ID: eid, Process: process, Stdin: input != "", Stdout: true, Stderr: true}); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	streams := task.Stdio{Stdout: &out, Stderr: &errs}
	if input != "" {
		streams.Stdin = strings.NewReader(input)
	}
	attached := make(chan error, 1)
	go func() { attached <- p.Attach(t.Context(), eid, streams) }()
	if _, err := p.Start(t.Context(), eid); err != nil {
		t.Fatal(err)
	}
	if err := <-attached; err != nil {
		t.Fatal(err)
	}
	exit = p.wait(t, eid)
	if err := p.Delete(t.Context(), eid); err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), exit
}

func TestRealPod(t *testing.T) {
	p := launchReal(t)
	info, err := p.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s on %s, kernel %.60s", info.Vm.Hypervisor, info.Vm.Version, info.Vm.Acceleration, info.Vm.Kernel)
	for _, phase := range info.Vm.Phases {
		t.Logf("phase %-13s %s", phase.Name, phase.Duration.AsDuration().Round(time.Millisecond))
	}

	user := p.create(t, "web", `echo hello from $(hostname); cat /proc/version; id; echo oops >&2; touch /written; nc -ll -p 8080 -e /bin/cat & while :; do sleep 1; done`,
		func(r *task.CreateRequest, _ *specs.Spec) { r.User = task.UserRequest{User: "root"} })
	if user.UID != 0 {
		t.Errorf("user = %+v", user)
	}
	p.start(t, "web")

	t.Run("exec", func(t *testing.T) {
		out, errs, exit := p.exec(t, "web", "e1", "cat; echo no >&2; exit 7", "input")
		if out != "input" || errs != "no\n" || exit.Code != 7 {
			t.Errorf("exec: %q, %q, %+v", out, errs, exit)
		}
	})
	t.Run("log", func(t *testing.T) {
		text := p.log(t, "web")
		for _, want := range []string{" stdout F hello from realpod\n", " stderr F oops\n", " stdout F uid=0", "Linux version"} {
			if !strings.Contains(text, want) {
				t.Errorf("log has no %q:\n%s", want, text)
			}
		}
	})
	t.Run("dial", func(t *testing.T) {
		conn, err := p.Dial(t.Context(), "tcp", "localhost:8080")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "ping")
		conn.(interface{ CloseWrite() error }).CloseWrite()
		if data, err := io.ReadAll(conn); string(data) != "ping" || err != nil {
			t.Errorf("echo: %q, %v", data, err)
		}
	})
	t.Run("stats", func(t *testing.T) {
		stats, err := p.Stats(t.Context())
		if err != nil || len(stats.Containers) != 1 || stats.Containers[0].Memory.Usage == 0 || stats.CPU.UsageNS == 0 {
			t.Errorf("stats = %+v, %v", stats, err)
		}
	})
	t.Run("second container shares the layer", func(t *testing.T) {
		p.create(t, "job", "exit 3", func(r *task.CreateRequest, _ *specs.Spec) { r.User = task.UserRequest{User: "web"} })
		p.start(t, "job")
		if exit := p.wait(t, task.ID{Container: "job"}); exit.Code != 3 {
			t.Errorf("exit = %+v", exit)
		}
		if err := p.Delete(t.Context(), task.ID{Container: "job"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("attach and terminal", func(t *testing.T) {
		p.create(t, "tty", "stty size; cat", func(r *task.CreateRequest, _ *specs.Spec) { r.Terminal, r.Stdin, r.StdinOnce = true, true, true })
		id := task.ID{Container: "tty"}
		in, input := io.Pipe()
		defer in.Close()
		var out bytes.Buffer
		attached := make(chan error, 1)
		go func() { attached <- p.Attach(t.Context(), id, task.Stdio{Stdin: in, Stdout: &out}) }()
		fmt.Fprint(input, "typed\n\x04") // blocks until the stream is there
		p.start(t, "tty")
		if err := <-attached; err != nil {
			t.Error(err)
		}
		if !strings.Contains(out.String(), "typed") {
			t.Errorf("terminal said %q", out.String())
		}
		p.wait(t, id)
		if err := p.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
	t.Run("bad command", func(t *testing.T) {
		p.create(t, "bad", "", func(_ *task.CreateRequest, s *specs.Spec) { s.Process.Args = []string{"/no/such/file"} })
		id := task.ID{Container: "bad"}
		if _, err := p.Start(t.Context(), id); err == nil || !strings.Contains(err.Error(), "/no/such/file") {
			t.Errorf("start = %v", err)
		}
		if exit := p.wait(t, id); exit.Code == 0 || exit.Reason == "" {
			t.Errorf("exit = %+v", exit)
		}
		if err := p.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
	t.Run("reconnect", func(t *testing.T) {
		again, err := shimclient.Connect(t.Context(), p.bundle)
		if err != nil {
			t.Fatal(err)
		}
		defer again.Close()
		if state, err := again.State(t.Context(), task.ID{Container: "web"}); state != "running" || err != nil {
			t.Errorf("state = %s, %v", state, err)
		}
	})
	t.Run("signal", func(t *testing.T) {
		id := task.ID{Container: "web"}
		if err := p.Signal(t.Context(), id, uint32(unix.SIGKILL), true); err != nil {
			t.Fatal(err)
		}
		if exit := p.wait(t, id); exit.Code != 137 {
			t.Errorf("exit = %+v", exit)
		}
		if err := p.Delete(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
	pss, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", info.ShimPid))
	if err != nil {
		t.Error(err)
	}
	t.Logf("memory of the shim:\n%s", pss)
	began := time.Now()
	if err := p.Stop(t.Context(), 20*time.Second); err != nil {
		t.Error(err)
	}
	t.Logf("stopped in %s", time.Since(began).Round(time.Millisecond))
	if _, err := shimclient.Connect(t.Context(), p.bundle); !errdefs.IsUnavailable(err) {
		t.Errorf("connect after stop: %v", err)
	}
}

// TestRealThroughput writes many lines in the guest and wants each of them in the log.
func TestRealThroughput(t *testing.T) {
	p := launchReal(t)
	const lines = 20000
	p.create(t, "loud", fmt.Sprintf("seq -w 1 %d; echo end", lines), nil)
	p.start(t, "loud")
	p.wait(t, task.ID{Container: "loud"})
	text := p.log(t, "loud")
	if n := strings.Count(text, "\n"); n != lines+1 || !strings.HasSuffix(text, "F end\n") {
		t.Errorf("%d lines, want %d; the last is %q", n, lines+1, text[max(0, len(text)-60):])
	}
}

// TestRealCrashes kills the VMM and then, in another pod, the shim.
func TestRealCrashes(t *testing.T) {
	for _, victim := range []string{"VMM", "shim"} {
		t.Run(victim, func(t *testing.T) {
			p := launchReal(t)
			p.create(t, "c", "while :; do sleep 1; done", nil)
			p.start(t, "c")
			dir := bundle.Dir(p.bundle)
			vmm, err := dir.ReadVMM()
			if err != nil {
				t.Fatal(err)
			}
			shim, err := dir.ReadShim()
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan task.Exit, 2)
			go func() {
				exit, err := p.Wait(t.Context(), task.ID{Container: "c"})
				if err != nil {
					t.Error(err)
				}
				done <- exit
			}()
			go func() {
				exit, err := p.WaitSandbox(t.Context())
				if err != nil {
					t.Error(err)
				}
				done <- exit
			}()
			killed := map[string]bundle.Process{"VMM": vmm, "shim": shim.Process}[victim]
			handle, err := vmm.Open()
			if err != nil {
				t.Fatal(err)
			}
			defer handle.Close()
			if err := killed.Kill(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if exit := <-done; exit.Code != 255 || !strings.Contains(exit.Reason, "ended") {
					t.Errorf("exit = %+v", exit)
				} else {
					t.Log(exit.Reason)
				}
			}
			// The VMM goes with its shim, without anybody's help.
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := handle.Wait(ctx); err != nil {
				t.Errorf("the VMM lives on: %v", err)
			}
			if err := p.Stop(t.Context(), 10*time.Second); err != nil {
				t.Errorf("stop after the crash: %v", err)
			}
		})
	}
}
