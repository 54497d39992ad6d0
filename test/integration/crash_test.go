package integration

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDaemonKilled: pods, containers and their logs go on while there is no daemon, and the next one takes over.
func TestDaemonKilled(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("survivor", nil)
	main := d.launch(pod, config, shell("main", forever))
	// The writer waits for a file, so that all of its output is written while the daemon is down.
	const megabytes = 8
	size := megabytes << 20
	write := fmt.Sprintf("while ! [ -e /dev/shm/go ]; do sleep 0.1; done; yes 0123456789 | head -c %d; echo; sha=$(yes 0123456789 | head -c %d | sha256sum); echo $sha >&2; exit 3", size, size)
	writer := d.launch(pod, config, shell("writer", write))
	logPath := d.status(writer).LogPath
	d.execSync(main, "sh", "-c", "(sleep 1; touch /dev/shm/go) >/dev/null 2>&1 &")
	d.kill()
	eventually(t, "the writer's last line", func() bool {
		raw, err := os.ReadFile(logPath)
		return err == nil && strings.Contains(string(raw), " stderr F ")
	})
	d.start()

	expect(t, "pod state", d.sandboxState(pod), runtime.PodSandboxState_SANDBOX_READY)
	expect(t, "container state", d.status(main).State, runtime.ContainerState_CONTAINER_RUNNING)
	expect(t, "exec", d.execSync(main, "echo", "still here"), "still here\n")
	status := d.wait(writer)
	expect(t, "exit code that happened meanwhile", status.ExitCode, 3)
	text := strings.TrimSuffix(d.logOf(status, "stdout"), "\n")
	expect(t, "bytes in the log", len(text), size)
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(text)))
	if told := d.logOf(status, "stderr"); !strings.HasPrefix(told, sum) {
		t.Errorf("the log's digest is %s, the container wrote %s", sum, told)
	}
	if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: main, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	expect(t, "exit code", d.status(main).ExitCode, 0)
	d.stopAndRemove(pod)
}

// killed kills one of a pod's processes on the host and checks what the daemon says afterwards.
func killed(t *testing.T, process, reason string) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("victim", nil)
	id := d.launch(pod, config, shell("main", forever))
	info := d.info(pod)
	vmm, err := strconv.Atoi(info["vmmPid"])
	if err != nil {
		t.Fatalf("no vmmPid in the verbose status: %v", info)
	}
	pid, err := strconv.Atoi(info[process])
	if err != nil {
		t.Fatalf("no %s in the verbose status: %v", process, info)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	status := d.wait(id)
	expect(t, "exit code", status.ExitCode, 255)
	if !strings.Contains(status.Message, reason) {
		t.Errorf("the container's message is %q and does not say %q", status.Message, reason)
	}
	eventually(t, "the sandbox to be not ready", func() bool {
		return d.sandboxState(pod) == runtime.PodSandboxState_SANDBOX_NOTREADY
	})
	eventually(t, "the VMM to be gone", func() bool { return syscall.Kill(vmm, 0) == syscall.ESRCH })
	console := filepath.Join(d.scope.Root, "consoles", pod+".log")
	eventually(t, "the guest's console to be kept", func() bool {
		text, err := os.ReadFile(console)
		return err == nil && strings.Contains(string(text), "agent: ")
	})
	if why := d.info(pod)["info"]; !strings.Contains(why, console) {
		t.Errorf("the status %q does not say where the console is", why)
	}
	d.stopAndRemove(pod)
	// The name is free again.
	again, _ := d.runPod("victim", nil)
	d.stopAndRemove(again)
	if _, err := os.Stat(filepath.Join(filepath.Dir(console), again+".log")); err == nil {
		t.Error("the console of a guest that ended as it should is kept")
	}
}

func TestVMMKilled(t *testing.T)  { killed(t, "vmmPid", "virtual machine") }
func TestShimKilled(t *testing.T) { killed(t, "shimPid", "shim") }

// TestShimAndDaemonKilled: nobody is left to end the VMM but the kernel.
func TestShimAndDaemonKilled(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("orphan", nil)
	id := d.launch(pod, config, shell("main", forever))
	info := d.info(pod)
	shim, _ := strconv.Atoi(info["shimPid"])
	vmm, _ := strconv.Atoi(info["vmmPid"])
	d.kill()
	if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the VMM to end with its shim", func() bool { return syscall.Kill(vmm, 0) == syscall.ESRCH })
	d.start()
	expect(t, "pod state", d.sandboxState(pod), runtime.PodSandboxState_SANDBOX_NOTREADY)
	expect(t, "exit code", d.status(id).ExitCode, 255)
	d.stopAndRemove(pod)
}
