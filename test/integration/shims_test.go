package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// foreign is a containerd shim that is not ours.
type foreign struct {
	handler string
	// gvisor: the containers have a kernel of their own, and its network stack.
	gvisor bool
	// table is what the configuration says of the handler.
	table func(t *testing.T) string
}

// runcShim is containerd's shim for runc: the one on PATH, or what its module has.
var runcShim = sync.OnceValues(func() (string, error) {
	const name = "containerd-shim-runc-v2"
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path := binary(name)
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "github.com/containerd/containerd/v2/cmd/"+name)
	cmd.Dir, cmd.Env = "../peers", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, out)
	}
	return path, nil
})

func foreignShims() []foreign {
	return []foreign{
		{handler: "runc-v2", table: func(t *testing.T) string {
			path, err := runcShim()
			if err != nil {
				t.Fatal(err)
			}
			runc, err := exec.LookPath("runc")
			if err != nil {
				runc = binary("guest/runc")
			}
			return fmt.Sprintf("shim = %q\n[handlers.runc-v2.options]\nBinaryName = %q\n", path, runc)
		}},
		{handler: "runsc", gvisor: true, table: func(t *testing.T) string {
			for _, program := range []string{"runsc", "containerd-shim-runsc-v1"} {
				if _, err := exec.LookPath(program); err != nil {
					t.Skipf("SKIPPED, not tested: %s of gVisor is not on PATH", program)
				}
			}
			file := filepath.Join(t.TempDir(), "runsc.toml")
			if err := os.WriteFile(file, []byte("[runsc_config]\nplatform = \"systrap\"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return fmt.Sprintf("shim = \"io.containerd.runsc.v1\"\n[handlers.runsc.options]\nTypeUrl = \"io.containerd.runsc.v1.options\"\nConfigPath = %q\n", file)
		}},
	}
}

// onShims runs a test for each shim that works on this host, each with a daemon of its own.
func onShims(t *testing.T, test func(t *testing.T, d *daemon, shim foreign)) {
	needs(t)
	for _, shim := range foreignShims() {
		t.Run(shim.handler, func(t *testing.T) {
			extra := "\n[handlers.vm]\ntype = \"vm\"\n[handlers." + shim.handler + "]\ntype = \"shim\"\n" + shim.table(t)
			if underKVM() == "" {
				extra = "acceleration = \"tcg\"\n" + extra
			}
			d := startDaemon(t, extra)
			if reason := notReady(d, shim.handler); reason != "" {
				t.Skipf("SKIPPED, not tested: handler %s: %s", shim.handler, reason)
			}
			d.handler = shim.handler
			d.pull(testImage)
			test(t, d, shim)
		})
	}
}

func TestContainerdShimPod(t *testing.T) {
	onShims(t, func(t *testing.T, d *daemon, shim foreign) {
		pod, config := d.runPod("plain", nil)
		web := d.launch(pod, config, shell("web", "mkdir /www; echo page > /www/index.html; httpd -p 127.0.0.1:8080 -h /www; echo ready; echo trouble >&2; "+forever))
		kernel, err := os.ReadFile("/proc/version")
		if err != nil {
			t.Fatal(err)
		}
		if host := d.execSync(web, "cat", "/proc/version") == string(kernel); host == shim.gvisor {
			t.Errorf("the container is on the host's kernel: %v", host)
		}
		if shim.gvisor {
			if log := d.execSync(web, "dmesg"); !strings.Contains(log, "gVisor") {
				t.Errorf("the kernel says %s", log)
			}
		}
		expect(t, "hostname", d.execSync(web, "hostname"), "plain\n")
		eventually(t, "the server", func() bool { return d.logOf(d.status(web), "stdout") == "ready\n" })
		expect(t, "stderr", d.logOf(d.status(web), "stderr"), "trouble\n")
		expect(t, "the peer's view", d.run(pod, config, shell("peer", "wget -qO- http://127.0.0.1:8080/; hostname")), "page\nplain\n")
		failing := d.wait(d.launch(pod, config, shell("failing", "exit 7")))
		if failing.ExitCode != 7 || failing.Reason != "Error" {
			t.Errorf("exit code %d, reason %s", failing.ExitCode, failing.Reason)
		}
		resp, err := d.ExecSync(d.call(), &runtime.ExecSyncRequest{ContainerId: web, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 9"}})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "exec", fmt.Sprintf("%d %q %q", resp.ExitCode, resp.Stdout, resp.Stderr), `9 "out\n" "err\n"`)
		stats, err := d.ContainerStats(d.call(), &runtime.ContainerStatsRequest{ContainerId: web})
		if err != nil {
			t.Fatal(err)
		}
		if s := stats.Stats; s.Cpu.UsageCoreNanoSeconds.Value == 0 || s.Memory.WorkingSetBytes.Value == 0 || s.WritableLayer == nil {
			t.Errorf("statistics: %v", s)
		}
		listed, err := d.ListContainerStats(d.call(), &runtime.ListContainerStatsRequest{Filter: &runtime.ContainerStatsFilter{PodSandboxId: pod}})
		if err != nil || !slices.ContainsFunc(listed.Stats, func(s *runtime.ContainerStats) bool { return s.Attributes.Id == web }) {
			t.Errorf("statistics beside containers that have ended: %v, %v", listed, err)
		}
		if _, err := d.PodSandboxStats(d.call(), &runtime.PodSandboxStatsRequest{PodSandboxId: pod}); err != nil {
			t.Error(err)
		}
		missing := shell("missing", "")
		missing.Command = []string{"/no/such/program"}
		id := d.create(pod, config, missing)
		_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: id})
		if s := d.status(id); err == nil || s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode < 126 {
			t.Errorf("a missing program: %v, exit code %d, reason %s: %s", err, s.ExitCode, s.Reason, s.Message)
		}
		_, err = d.CheckpointContainer(d.call(), &runtime.CheckpointContainerRequest{ContainerId: web, Location: filepath.Join(t.TempDir(), "c.tar")})
		expect(t, "checkpoint", status.Code(err), codes.Unimplemented)
		_, err = d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{ContainerId: web, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 256 << 20}})
		if err != nil {
			t.Errorf("update: %v", err)
		}
		if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: web, Timeout: 10}); err != nil {
			t.Fatal(err)
		}
		if s := d.status(web); s.ExitCode != 0 {
			t.Errorf("stopped with exit code %d, its signal was not handled", s.ExitCode)
		}
		d.stopAndRemove(pod)
		d.nothing("after the pod")
	})
}

// TestContainerdShimPromises: a shim is offered for what it can, and refused for what it cannot.
func TestContainerdShimPromises(t *testing.T) {
	onShims(t, func(t *testing.T, d *daemon, shim foreign) {
		resp, err := d.Status(d.call(), &runtime.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range resp.RuntimeHandlers {
			if h.Name == shim.handler && (h.Features.RecursiveReadOnlyMounts == shim.gvisor || shim.gvisor && h.Features.UserNamespaces) {
				t.Errorf("it is offered with %v", h.Features)
			}
		}
		for kind, options := range map[string]*runtime.NamespaceOption{
			"net": {Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_CONTAINER},
			"pid": {Pid: runtime.NamespaceMode_NODE},
		} {
			config := d.podConfig("host-" + kind)
			if kind == "net" {
				config.Hostname = ""
			}
			config.Linux.SecurityContext.NamespaceOptions = options
			pod, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: shim.handler})
			if shim.gvisor {
				if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "hostNetwork") {
					t.Errorf("a pod in the host's %s namespace: %v", kind, err)
				}
				d.nothing("after a refused pod")
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			ns, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			c := shell("c", "readlink /proc/self/ns/"+kind)
			c.Linux.SecurityContext.NamespaceOptions = options
			expect(t, "the namespace "+kind, d.run(pod.PodSandboxId, config, c), ns+"\n")
			d.stopAndRemove(pod.PodSandboxId)
		}
	})
}

// TestContainerdShimCrash: pods outlive the daemon with all that they say, and the end of a shim is noticed.
func TestContainerdShimCrash(t *testing.T) {
	onShims(t, func(t *testing.T, d *daemon, _ foreign) {
		pod, config := d.runPod("lasting", nil)
		writer := d.launch(pod, config, shell("writer", "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 3"))
		running := d.launch(pod, config, shell("running", forever))
		created := d.create(pod, config, shell("created", "echo late"))
		d.kill()
		d.start()
		s := d.wait(writer)
		expect(t, "exit code", s.ExitCode, int32(3))
		lines := lines(d.logOf(s, "stdout"))
		if len(lines) != 20000 || lines[0] != "line 0" || lines[19999] != "line 19999" {
			t.Errorf("%d lines, from %q to %q", len(lines), lines[0], lines[len(lines)-1])
		}
		expect(t, "exec after the crash", d.execSync(running, "echo", "alive"), "alive\n")
		d.startContainer(created)
		expect(t, "a container of before", d.logOf(d.wait(created), "stdout"), "late\n")

		shims := processesWith(t, d.scope.State, "containerd-shim-")
		if len(shims) == 0 {
			t.Fatal("there is no shim")
		}
		for _, pid := range shims {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if s := d.wait(running); s.ExitCode != 255 || !strings.Contains(s.Message, "shim") {
			t.Errorf("exit code %d: %s", s.ExitCode, s.Message)
		}
		eventually(t, "the pod to be not ready", func() bool { return d.sandboxState(pod) == runtime.PodSandboxState_SANDBOX_NOTREADY })
		d.stopAndRemove(pod)
		d.nothing("after the shim's end")
	})
}

// TestContainerdShimNotedExit: an exit that a shim has noted counts, although it died before anybody asked.
func TestContainerdShimNotedExit(t *testing.T) {
	onShims(t, func(t *testing.T, d *daemon, shim foreign) {
		if shim.gvisor {
			t.Skip("SKIPPED, not tested: this shim takes no notes")
		}
		pod, config := d.runPod("noted", nil)
		id := d.launch(pod, config, shell("c", "sleep 1; echo last; exit 3"))
		d.kill()
		note := filepath.Join(d.scope.State, "bundles", id, "exit.json")
		eventually(t, "the shim's note", func() bool {
			_, err := os.Stat(note)
			return err == nil
		})
		for _, pid := range processesWith(t, d.scope.State, "containerd-shim-") {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		d.start()
		s := d.wait(id)
		expect(t, "exit code", s.ExitCode, int32(3))
		expect(t, "log", d.logOf(s, "stdout"), "last\n")
		d.stopAndRemove(pod)
		d.nothing("after a shim that took a note")
	})
}

// processesWith are the processes whose arguments have both in them.
func processesWith(t *testing.T, texts ...string) (pids []int) {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range entries {
		cmdline, _ := os.ReadFile(path) // it may have ended
		if slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(string(cmdline), text) }) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/cmdline", &pid); err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func TestContainerdShimStreams(t *testing.T) {
	onShims(t, func(t *testing.T, d *daemon, shim foreign) {
		pod, config := d.runPod("streams", nil)
		listen := "127.0.0.1:8082"
		if shim.gvisor {
			listen = "0.0.0.0:8082" // it is reached as its neighbours reach it
		}
		id := d.launch(pod, config, shell("main", "httpd -p "+listen+" -h /srv; "+forever))
		for protocol, dial := range executors {
			t.Run(protocol+" exec", func(t *testing.T) { execStreams(t, d, id, dial) })
			t.Run(protocol+" tty", func(t *testing.T) { execTTY(t, d, id, "test -t 1 && echo yes", "yes", dial) })
			t.Run(protocol+" attach", func(t *testing.T) {
				cat := shell("cat-"+protocol, "for i in 1 2; do read line; echo \"got $line\"; done; echo end")
				cat.Stdin, cat.StdinOnce = true, true
				attached(t, d, d.launch(pod, config, cat), dial)
			})
		}
		t.Run("end of the input", func(t *testing.T) {
			cat := shell("cat", "cat >/dev/null; for i in got\\ one got\\ two end; do echo $i; done")
			cat.Stdin, cat.StdinOnce = true, true
			attached(t, d, d.launch(pod, config, cat), executors["spdy"])
		})
		t.Run("port-forward", func(t *testing.T) { forwarded(t, d, pod) })
		t.Run("log rotation", func(t *testing.T) { rotated(t, d, pod, config) })
	})
}

// TestContainerdShimMissing: a handler whose shim is not there is said to be not ready, and its pods are refused.
func TestContainerdShimMissing(t *testing.T) {
	d := startDaemon(t, "acceleration = \"tcg\"\n[handlers.vm]\ntype = \"vm\"\n[handlers.wasm]\ntype = \"shim\"\nshim = \"io.containerd.nosuch.v1\"\n")
	if reason := notReady(d, "wasm"); !strings.Contains(reason, "containerd-shim-nosuch-v1") || !strings.Contains(reason, "handlers.wasm.shim") {
		t.Errorf("the handler's condition: %q", reason)
	}
	_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: d.podConfig("none"), RuntimeHandler: "wasm"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "containerd-shim-nosuch-v1") {
		t.Errorf("run pod: %v", err)
	}
}
