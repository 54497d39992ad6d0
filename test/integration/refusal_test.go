package integration

import (
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refused checks an error's code and that its sentence has the words that help.
func refused(t *testing.T, what string, err error, code codes.Code, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s was not refused", what)
		return
	}
	s := status.Convert(err)
	if s.Code() != code {
		t.Errorf("%s: code %v, want %v: %s", what, s.Code(), code, s.Message())
	}
	for _, w := range words {
		if !strings.Contains(s.Message(), w) {
			t.Errorf("%s: the error %q does not say %q", what, s.Message(), w)
		}
	}
}

// TestBadPods: each is refused with a sentence, and leaves nothing; the daemon's cleaning up checks the latter.
func TestBadPods(t *testing.T) {
	d := startDaemon(t, "")
	run := func(handler string, adjust func(*runtime.PodSandboxConfig)) error {
		config := d.podConfig("bad")
		adjust(config)
		_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		return err
	}
	host := func(set func(*runtime.NamespaceOption)) func(*runtime.PodSandboxConfig) {
		return func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{}
			set(c.Linux.SecurityContext.NamespaceOptions)
		}
	}
	nothing := func(*runtime.PodSandboxConfig) {}
	refused(t, "an unknown handler", run("no-such", nothing), codes.InvalidArgument, "no-such", "vm")
	refused(t, "host network", run("vm", host(func(o *runtime.NamespaceOption) { o.Network = runtime.NamespaceMode_NODE })), codes.InvalidArgument, "host's network")
	refused(t, "host PID", run("vm", host(func(o *runtime.NamespaceOption) { o.Pid = runtime.NamespaceMode_NODE })), codes.InvalidArgument, "host")
	refused(t, "host IPC", run("vm", host(func(o *runtime.NamespaceOption) { o.Ipc = runtime.NamespaceMode_NODE })), codes.InvalidArgument, "host")
	refused(t, "no metadata", run("vm", func(c *runtime.PodSandboxConfig) { c.Metadata = nil }), codes.InvalidArgument, "metadata")
}

// TestBadContainers: the same for containers, in one pod.
func TestBadContainers(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("containers", nil)
	create := func(adjust func(*runtime.ContainerConfig)) error {
		c := shell("bad", "true")
		adjust(c)
		_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
		return err
	}
	refused(t, "an unknown image", create(func(c *runtime.ContainerConfig) { c.Image.Image = "registry.test/no/such:1" }), codes.NotFound, "registry.test/no/such:1")
	refused(t, "a missing host path", create(func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{{HostPath: "/no/such/path", ContainerPath: "/data"}}
	}), codes.InvalidArgument, "/no/such/path")
	refused(t, "an unknown user", create(func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody-of-that-name" }), codes.NotFound, "nobody-of-that-name")

	_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: "0123456789", Config: shell("x", "true"), SandboxConfig: config})
	refused(t, "an unknown sandbox", err, codes.NotFound, "0123456789")
	_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: "0123456789"})
	refused(t, "start of an unknown container", err, codes.NotFound, "0123456789")

	// After all of these the name is free.
	id := d.launch(pod, config, shell("bad", forever))
	refused(t, "a duplicate name", create(func(*runtime.ContainerConfig) {}), codes.AlreadyExists, id[:12])
	_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: id})
	refused(t, "a second start", err, codes.FailedPrecondition, "running")

	broken := shell("broken", "")
	broken.Command = []string{"/no/such/program"}
	ctr := d.create(pod, config, broken)
	_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: ctr})
	if err == nil {
		t.Error("a program that does not exist was started")
	} else if code := status.Code(err); code == codes.Unknown || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("a program that does not exist: %v", err)
	}
	expect(t, "its state", d.status(ctr).State, runtime.ContainerState_CONTAINER_EXITED)

	dup := d.podConfig("containers")
	_, err = d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: dup, RuntimeHandler: "vm"})
	refused(t, "a duplicate pod", err, codes.AlreadyExists, pod[:12])
	// Stop and Remove of what is not there succeed, as CRI asks.
	if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: "0123456789"}); err != nil {
		t.Errorf("stop of an unknown container: %v", err)
	}
	if _, err := d.RemovePodSandbox(d.call(), &runtime.RemovePodSandboxRequest{PodSandboxId: "0123456789"}); err != nil {
		t.Errorf("remove of an unknown pod: %v", err)
	}
}

// TestTooLittleMemory: a guest that could not boot is refused before anything is made for it.
func TestTooLittleMemory(t *testing.T) {
	d := startDaemon(t, "memory_mib = 64\n")
	_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: d.podConfig("small"), RuntimeHandler: "vm"})
	refused(t, "64 MiB", err, codes.InvalidArgument, "64 MiB", "128 MiB")
}

// TestGuestThatDoesNotBoot: a kernel that never starts an agent ends the call with the guest's last words.
func TestGuestThatDoesNotBoot(t *testing.T) {
	d := startDaemon(t, "boot_timeout = \"20s\"\nkernel_params = [\"rdinit=/no/such/init\"]\n")
	_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: d.podConfig("dead"), RuntimeHandler: "vm"})
	if code := status.Code(err); code != codes.DeadlineExceeded && code != codes.Unavailable && code != codes.FailedPrecondition {
		t.Errorf("code %v: %v", code, err)
	}
	if err == nil || !strings.Contains(err.Error(), "anic") {
		t.Errorf("the error does not have the guest's last words: %v", err)
	}
	consoles, globErr := filepath.Glob(filepath.Join(d.scope.Root, "consoles", "*.log"))
	if globErr != nil || len(consoles) != 1 || !strings.Contains(read(t, consoles[0]), "anic") || !strings.Contains(err.Error(), consoles[0]) {
		t.Errorf("consoles that are kept: %v, %v; the error: %v", consoles, globErr, err)
	}
}
