package integration

import (
	"os"
	"strings"
	"testing"

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
