package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// onHost runs a test for each OCI runtime that works on this host, each with a daemon of its own.
func onHost(t *testing.T, test func(t *testing.T, d *daemon)) {
	for _, handler := range []string{"runc", "crun"} {
		t.Run(handler, func(t *testing.T) {
			if handler == "crun" {
				oneHierarchy(t)
			}
			extra := ""
			if underKVM() == "" {
				extra = "acceleration = \"tcg\"\n" // or it would try a guest first
			}
			d := startDaemon(t, extra)
			if reason := notReady(d, handler); reason != "" {
				t.Skipf("SKIPPED, not tested: handler %s: %s", handler, reason)
			}
			d.handler = handler
			d.pull(testImage)
			test(t, d)
		})
	}
}

// oneHierarchy leaves cgroup v2 without controllers where a host has them on v1 and v2: crun runs on no such host. Mounting
// a controller as v1 takes it from v2, if nobody uses it there.
func oneHierarchy(t *testing.T) {
	t.Helper()
	controllers, err := os.ReadFile("/sys/fs/cgroup/unified/cgroup.controllers")
	if err != nil {
		return // no such host
	}
	for _, controller := range strings.Fields(string(controllers)) {
		at := filepath.Join(t.TempDir(), controller)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("cgroup", at, "cgroup", 0, controller); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(at, 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// notReady is why a handler cannot run pods; empty where it can.
func notReady(d *daemon, handler string) string {
	d.t.Helper()
	resp, err := d.Status(d.call(), &runtime.StatusRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		if c.Type == "HandlerReady/"+handler && !c.Status {
			return c.Message
		}
	}
	return ""
}

func TestHostPod(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		pod, config := d.runPod("plain", nil)
		web := d.launch(pod, config, shell("web", "mkdir /www; echo page > /www/index.html; httpd -p 127.0.0.1:8080 -h /www; echo ready; echo trouble >&2; "+forever))
		kernel, err := os.ReadFile("/proc/version")
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "kernel", d.execSync(web, "cat", "/proc/version"), string(kernel))
		expect(t, "hostname", d.execSync(web, "hostname"), "plain\n")
		eventually(t, "the server", func() bool { return d.logOf(d.status(web), "stdout") == "ready\n" })
		expect(t, "stderr", d.logOf(d.status(web), "stderr"), "trouble\n")
		// A second container shares the network, and the IPC and UTS namespaces.
		out := d.run(pod, config, shell("peer", "wget -qO- http://127.0.0.1:8080/; for n in ipc uts net; do readlink /proc/self/ns/$n; done"))
		shared := d.execSync(web, "sh", "-c", "for n in ipc uts net; do readlink /proc/self/ns/$n; done")
		expect(t, "the peer's view", out, "page\n"+shared)
		failing := d.wait(d.launch(pod, config, shell("failing", "exit 7")))
		if failing.ExitCode != 7 || failing.Reason != "Error" {
			t.Errorf("exit code %d, reason %s", failing.ExitCode, failing.Reason)
		}
		stats, err := d.ContainerStats(d.call(), &runtime.ContainerStatsRequest{ContainerId: web})
		if err != nil {
			t.Fatal(err)
		}
		if s := stats.Stats; s.Cpu.UsageCoreNanoSeconds.Value == 0 || s.Memory.WorkingSetBytes.Value == 0 || s.WritableLayer.UsedBytes.Value == 0 {
			t.Errorf("statistics: %v", s)
		}
		ofPod, ofContainer := d.metricsOf(pod, web)
		checkMetrics(t, ofPod, ofContainer)
		missing := shell("missing", "")
		missing.Command = []string{"/no/such/program"}
		id := d.create(pod, config, missing)
		_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: id})
		if s := d.status(id); err == nil || s.ExitCode != 127 || s.Reason != "ContainerCannotRun" {
			t.Errorf("a missing program: %v, exit code %d, reason %s", err, s.ExitCode, s.Reason)
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

// TestHostCrash: pods outlive the daemon, and their monitor's end is noticed.
func TestHostCrash(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
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

		monitor, err := strconv.Atoi(d.info(pod)["monitorPid"])
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pod to be not ready", func() bool { return d.sandboxState(pod) == runtime.PodSandboxState_SANDBOX_NOTREADY })
		if s := d.wait(running); s.ExitCode != 255 || !strings.Contains(s.Message, "monitor") {
			t.Errorf("exit code %d: %s", s.ExitCode, s.Message)
		}
		d.stopAndRemove(pod)
		d.nothing("after the monitor's end")
	})
}

func TestHostPIDNamespaces(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		shared, config := d.runPod("shared", func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		})
		inPod := func(c *runtime.ContainerConfig) *runtime.ContainerConfig {
			c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
			return c
		}
		d.launch(shared, config, inPod(shell("one", "exec sleep 1000")))
		out := d.run(shared, config, inPod(shell("two", "ps -o pid,args; ls /proc/1/root/ 2>&1")))
		if !strings.Contains(out, "sleep 1000") || !strings.Contains(out, "/init init") {
			t.Errorf("the second container sees %s", out)
		}
		if strings.Contains(out, "\nroot\n") {
			t.Errorf("the first process leads out of the pod: %s", out)
		}
		target, targetConfig := d.runPod("target", nil)
		main := d.launch(target, targetConfig, shell("main", "exec sleep 2000"))
		debug := shell("debug", "ps -o args")
		debug.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: main}
		if out := d.run(target, targetConfig, debug); !strings.Contains(out, "sleep 2000") {
			t.Errorf("the debug container sees %s", out)
		}
		for _, pod := range []string{shared, target} {
			d.stopAndRemove(pod)
		}
		d.nothing("after shared namespaces")
	})
}

func TestHostNamespaces(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		host := &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE, Pid: runtime.NamespaceMode_NODE, Ipc: runtime.NamespaceMode_NODE}
		pod, config := d.runPod("host", func(c *runtime.PodSandboxConfig) {
			c.Hostname, c.Linux.SecurityContext.NamespaceOptions = "", host
		})
		c := shell("c", "for n in net pid ipc uts; do readlink /proc/self/ns/$n; done")
		c.Linux.SecurityContext.NamespaceOptions = host
		var want strings.Builder
		for _, kind := range []string{"net", "pid", "ipc", "uts"} {
			ns, err := os.Readlink("/proc/self/ns/" + kind)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(&want, ns)
		}
		expect(t, "namespaces", d.run(pod, config, c), want.String())
		long := shell("long", "sleep 3000 & sleep 3001")
		long.Linux.SecurityContext.NamespaceOptions = host
		id := d.launch(pod, config, long)
		if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		if out, _ := exec.Command("pgrep", "-f", "sleep 300[01]").CombinedOutput(); len(out) > 0 {
			t.Errorf("processes outlive their container: %s", out)
		}
		d.stopAndRemove(pod)
		d.nothing("after the host's namespaces")
	})
}

func TestHostUserNamespace(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		ids := []*runtime.IDMapping{{HostId: 300000, Length: 65536}}
		users := &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
		pod, config := d.runPod("mapped", func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
		})
		volume := t.TempDir()
		if err := os.Chmod(volume, 0o755); err != nil {
			t.Fatal(err)
		}
		c := shell("c", "id -u; cat /proc/self/uid_map; touch /owned /volume/made; stat -c %u /owned /bin/sh /volume/made; "+forever)
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users
		c.Mounts = []*runtime.Mount{{ContainerPath: "/volume", HostPath: volume, UidMappings: ids, GidMappings: ids}}
		id := d.launch(pod, config, c)
		eventually(t, "its output", func() bool { return len(lines(d.logOf(d.status(id), "stdout"))) == 5 })
		got := strings.Fields(d.logOf(d.status(id), "stdout"))
		expect(t, "the users' view", strings.Join(got, " "), "0 0 300000 65536 0 0 0")
		var made unix.Stat_t
		if err := unix.Stat(filepath.Join(volume, "made"), &made); err != nil || made.Uid != 0 {
			t.Errorf("the volume's file belongs to %d on the host: %v", made.Uid, err)
		}
		expect(t, "exec", d.execSync(id, "id", "-u"), "0\n")
		d.stopAndRemove(pod)
		d.nothing("after a user namespace")
	})
}

func TestHostLimits(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		pod, config := d.runPod("limited", nil)
		c := shell("c", forever)
		c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 20000, CpuPeriod: 100000}
		id := d.launch(pod, config, c)
		_, err := d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{
			ContainerId: id, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 << 20},
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := d.status(id).Resources.GetLinux(); got.GetMemoryLimitInBytes() != 96<<20 || got.GetCpuQuota() != 20000 {
			t.Errorf("resources in the status: %v", got)
		}
		if err := d.resizePod(pod, 512<<20); err != nil {
			t.Errorf("the pod as a whole: %v", err)
		}
		if info := d.info(pod)["info"]; !strings.Contains(info, fmt.Sprint(`"MemoryLimit":`, 512<<20)) {
			t.Errorf("what the pod may use is not in its status: %s", info)
		}
		greedy := shell("greedy", "x=x; while :; do x=$x$x; done")
		greedy.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 24 << 20, MemorySwapLimitInBytes: 24 << 20}
		if s := d.wait(d.launch(pod, config, greedy)); s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("exit code %d, reason %s", s.ExitCode, s.Reason)
		}
		d.stopAndRemove(pod)
		d.nothing("after limits")
	})
}

// TestBothKinds: pods on the host's kernel and in a VM side by side, chosen by handler and by annotation.
func TestBothKinds(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	kernelOf := func(name, handler string, annotations map[string]string) string {
		config := d.podConfig(name)
		config.Annotations = annotations
		resp, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		if err != nil {
			t.Fatalf("handler %q, annotations %v: %v", handler, annotations, err)
		}
		defer d.stopAndRemove(resp.PodSandboxId)
		return d.run(resp.PodSandboxId, config, shell("c", "cat /proc/version"))
	}
	d.configure(func(s string) string {
		return strings.Replace(s, `default_handler = "vm"`, `default_handler = "runc"`, 1)
	})
	d.stop()
	d.start()
	host, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	const trusted = "io.kubernetes.cri-o.TrustedSandbox"
	expect(t, "no handler", kernelOf("default", "", nil), string(host))
	expect(t, "runc, though untrusted", kernelOf("chosen", "runc", map[string]string{trusted: "false"}), string(host))
	if got := kernelOf("untrusted", "", map[string]string{trusted: "false"}); got == string(host) {
		t.Error("an untrusted pod runs on the host's kernel")
	}
	// Without a handler for them they are refused.
	d.configure(func(s string) string {
		return strings.Replace(s, "cgroup_parent", "untrusted_handler = \"\"\ncgroup_parent", 1)
	})
	d.stop()
	d.start()
	config := d.podConfig("refused")
	config.Annotations = map[string]string{trusted: "false"}
	_, err = d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: config})
	refused(t, "an untrusted pod without a handler", err, codes.FailedPrecondition, "untrusted_handler")
	d.nothing("after both kinds")
}
