package integration

import (
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestPod is the way of a pod: image, sandbox, container, output, exec, exit code, restart, stop, removal.
func TestPod(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("way", nil)

	id := d.launch(pod, config, shell("main", "cat /proc/version; echo to-stderr >&2; exit 7"))
	status := d.wait(id)
	expect(t, "exit code", status.ExitCode, 7)
	expect(t, "reason", status.Reason, "Error")
	expect(t, "stderr", d.logOf(status, "stderr"), "to-stderr\n")
	host, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	guest := d.logOf(status, "stdout")
	if !strings.HasPrefix(guest, "Linux version ") || guest == string(host) {
		t.Errorf("the container's kernel is %q, the host's %q", guest, host)
	}

	// A restart is a new container of the same name with the next attempt.
	again := shell("main", "echo second; "+forever)
	again.Metadata.Attempt = 1
	again.LogPath = "main-1.log"
	second := d.launch(pod, config, again)
	expect(t, "exec", d.execSync(second, "echo", "from", "exec"), "from exec\n")
	expect(t, "state", d.status(second).State, runtime.ContainerState_CONTAINER_RUNNING)
	if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: second, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	status = d.status(second)
	expect(t, "exit code after SIGTERM", status.ExitCode, 0)
	expect(t, "reason after SIGTERM", status.Reason, "Completed")

	list, err := d.ListContainers(d.call(), &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: pod}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "containers", len(list.Containers), 2)
	if _, err := d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	d.stopAndRemove(pod)
	// Both are idempotent.
	d.stopAndRemove(pod)
	pods, err := d.ListPodSandbox(d.call(), &runtime.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "pods", len(pods.Items), 0)
}

// TestPodSharesNamespaces: the containers of a pod share network, IPC and host name, and the PID namespace on request.
func TestPodSharesNamespaces(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("shared", func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
		c.Linux.Sysctls = map[string]string{"net.ipv4.ping_group_range": "0 1000"}
	})
	inPod := func(name, script string) *runtime.ContainerConfig {
		c := shell(name, script)
		c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
		return c
	}
	d.launch(pod, config, inPod("server", "echo over-localhost > /tmp/index.html; echo from-shm > /dev/shm/file; exec httpd -f -p 127.0.0.1:8081 -h /tmp"))
	out := d.run(pod, config, inPod("client", script(
		"for i in $(seq 100); do wget -q -O - http://127.0.0.1:8081/index.html && break; sleep 0.1; done",
		"cat /dev/shm/file", "hostname", "cat /proc/sys/net/ipv4/ping_group_range | tr '\\t' ' '",
		"ps -o args | grep -c '[h]ttpd -f'",
	)))
	expect(t, "the client's output", out, "over-localhost\nfrom-shm\nshared\n0 1000\n1\n")
}

// TestTargetPID: a container that debugs another one sees its processes; and one that wants to be alone is, in a pod that
// shares.
func TestTargetPID(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("targets", func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
	})
	in := func(name, script string, option *runtime.NamespaceOption) *runtime.ContainerConfig {
		c := shell(name, script)
		c.Linux.SecurityContext.NamespaceOptions = option
		return c
	}
	alone := d.launch(pod, config, in("alone", "sleep 12345 & "+forever, ownPID()))
	d.launch(pod, config, in("sharing", "sleep 54321 & "+forever, &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}))
	expect(t, "its first process", d.execSync(alone, "sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline | cut -c 1-5"), "sh -c\n")

	const look = "ps -o args | grep -x 'sleep [0-9]\\{5\\}'"
	target := func(id string) *runtime.NamespaceOption {
		return &runtime.NamespaceOption{Pid: runtime.NamespaceMode_TARGET, TargetId: id}
	}
	debugger := d.launch(pod, config, in("debugger", look+"; "+forever, target(alone)))
	expect(t, "what the one alone sees", d.execSync(alone, "sh", "-c", look), "sleep 12345\n")
	expect(t, "what its debugger sees", d.execSync(debugger, "sh", "-c", look), "sleep 12345\n")
	d.execSync(debugger, "sh", "-c", "kill $(ps -o pid,args | awk '$2 == \"sleep\" && $3 == \"12345\" { print $1 }')")
	eventually(t, "the target's process to end", func() bool { return d.execSync(alone, "sh", "-c", look+" || :") == "" })

	// The namespace ends with the target's first process, and all that are in it do.
	if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: alone, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	expect(t, "exit code of the debugger", d.wait(debugger).ExitCode, 137)
	_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: in("late", "true", target(alone)), SandboxConfig: config})
	refused(t, "a target that has ended", err, codes.FailedPrecondition, alone)
	_, err = d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: in("lost", "true", target("0123456789")), SandboxConfig: config})
	refused(t, "a target that is not there", err, codes.NotFound, "0123456789")
}

// TestPodPrivatePID: without sharing, a container sees its own processes only.
func TestPodPrivatePID(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("private", nil)
	d.launch(pod, config, shell("one", forever))
	out := d.run(pod, config, shell("two", "echo $$; ls -d /proc/[0-9]* | wc -l"))
	lines := lines(out)
	expect(t, "its pid", lines[0], "1")
	if len(lines[1]) > 1 {
		t.Errorf("it sees %s processes, more than its own", lines[1])
	}
}
