package integration

import (
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestGuestThatHangs: calls into a guest that does not answer end in time with an error, others are not disturbed, and
// the pod goes on when the guest does; if that is never, it can be stopped and removed.
func TestGuestThatHangs(t *testing.T) {
	d := startDaemon(t, "memory_mib = 192\n")
	d.pull(testImage)
	pod, config := d.runPod("hangs", nil)
	id := d.launch(pod, config, shell("main", forever))
	vmm := d.process(pod, "vmmPid")
	hang := func(signal syscall.Signal) {
		t.Helper()
		if err := syscall.Kill(vmm, signal); err != nil {
			t.Fatal(err)
		}
	}
	hang(syscall.SIGSTOP)
	// Whoever fails below: the VMM is not left stopped.
	t.Cleanup(func() { _ = syscall.Kill(vmm, syscall.SIGCONT) })
	_, err := d.ExecSync(d.call(), &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "98765"}, Timeout: 1})
	refused(t, "exec", err, codes.DeadlineExceeded)
	hang(syscall.SIGCONT)
	expect(t, "exec when the guest goes on", d.execSync(id, "echo", "again"), "again\n")
	// The command that was given up does not run on.
	eventually(t, "the container to have its own processes only", func() bool {
		return d.execSync(id, "sh", "-c", "ps -o args | grep -c '[9]8765' || :") == "0\n"
	})

	hang(syscall.SIGSTOP)
	_, err = d.ExecSync(d.call(), &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 2})
	refused(t, "exec", err, codes.DeadlineExceeded)
	_, err = d.ContainerStats(d.call(), &runtime.ContainerStatsRequest{ContainerId: id})
	refused(t, "stats", err, codes.DeadlineExceeded)
	if _, err := d.ListContainerStats(d.call(), &runtime.ListContainerStatsRequest{}); err != nil {
		t.Errorf("stats of all: %v", err)
	}
	_, err = d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: id, Timeout: 1})
	refused(t, "stop container", err, codes.DeadlineExceeded, "stopping the pod")
	expect(t, "container", d.status(id).State, runtime.ContainerState_CONTAINER_RUNNING)
	expect(t, "pod", d.sandboxState(pod), runtime.PodSandboxState_SANDBOX_READY)
	// A daemon that starts meanwhile does not hang with it.
	d.kill()
	d.start()
	expect(t, "pod", d.sandboxState(pod), runtime.PodSandboxState_SANDBOX_READY)

	if _, err := d.StopPodSandbox(d.call(), &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatalf("stop pod: %v", err)
	}
	expect(t, "exit code", d.status(id).ExitCode, 255)
	if !ended(vmm) {
		t.Error("the VMM lives")
	}
	d.stopAndRemove(pod)
	d.nothing("after a guest that hung")
}
