package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/test/leak"
)

// failAt makes processes that are started from now on fail at a point, and says how; with no mode they do not.
func (d *daemon) failAt(point, mode string) {
	d.env = nil
	if mode != "" {
		d.env = []string{failpoint.Env + "=" + point + "=" + mode}
	}
}

// crashed waits for a daemon that a failpoint ends, and starts the next one with another point.
func (d *daemon) crashed(next, mode string) {
	d.t.Helper()
	ctx := d.call()
	select {
	case <-d.done:
	case <-ctx.Done():
		d.t.Fatalf("the daemon did not reach its failpoint %v\n%s", d.env, d.logs())
	}
	d.failAt(next, mode)
	d.start()
}

// restart ends the daemon as systemd does and starts one with another point.
func (d *daemon) restart(point, mode string) {
	d.t.Helper()
	d.stop()
	d.failAt(point, mode)
	d.start()
}

// tryPod runs a pod whose call may fail.
func (d *daemon) tryPod(name string) (string, error) {
	resp, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: d.podConfig(name), RuntimeHandler: d.handler})
	return resp.GetPodSandboxId(), err
}

// tryContainer makes a container, or not.
func (d *daemon) tryContainer(pod, name string) (string, error) {
	resp, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{
		PodSandboxId: pod, Config: shell(name, forever), SandboxConfig: d.podConfig("points"),
	})
	return resp.GetContainerId(), err
}

// nothing checks that there are no pods and no containers, and nothing on the host of any.
func (d *daemon) nothing(when string) {
	d.t.Helper()
	pods, containers := d.all()
	for _, p := range pods {
		d.t.Errorf("%s: pod %s is listed as %v", when, p.Metadata.Name, p.State)
	}
	for _, c := range containers {
		d.t.Errorf("%s: container %s is listed as %v", when, c.Metadata.Name, c.State)
	}
	found, err := leak.Find(d.scope)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, line := range found {
		if !strings.HasPrefix(line, fmt.Sprintf("process: %d ", d.cmd.Process.Pid)) { // the daemon itself
			d.t.Errorf("%s: left behind: %s", when, line)
		}
	}
}

// all are the pods and containers; each that is listed must have a status that agrees.
func (d *daemon) all() ([]*runtime.PodSandbox, []*runtime.Container) {
	d.t.Helper()
	pods, err := d.ListPodSandbox(d.call(), &runtime.ListPodSandboxRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, p := range pods.Items {
		expect(d.t, "state of the listed pod "+p.Metadata.Name, d.sandboxState(p.Id), p.State)
	}
	containers, err := d.ListContainers(d.call(), &runtime.ListContainersRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, c := range containers.Containers {
		expect(d.t, "state of the listed container "+c.Metadata.Name, d.status(c.Id).State, c.State)
	}
	return pods.Items, containers.Containers
}

// only is the one pod that there is.
func (d *daemon) only(when string, state runtime.PodSandboxState) string {
	d.t.Helper()
	pods, _ := d.all()
	if len(pods) != 1 {
		d.t.Fatalf("%s: %d pods, want 1\n%s", when, len(pods), d.logs())
	}
	expect(d.t, when+": state", pods[0].State, state)
	return pods[0].Id
}

// unknown is nil if there is no such container.
func (d *daemon) unknown(id string) error {
	resp, err := d.ContainerStatus(d.call(), &runtime.ContainerStatusRequest{ContainerId: id})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return fmt.Errorf("%v %w", resp, err)
}

func injected(t *testing.T, point string, err error) {
	t.Helper()
	if err == nil || status.Code(err) == codes.Unknown || !strings.Contains(err.Error(), point) {
		t.Errorf("%s: the call says %v", point, err)
	}
}

// TestSandboxFailpoints: a daemon that dies anywhere on the way of a sandbox leaves nothing that the next one does not
// clean up, and the name can be used at once: each step uses the same.
func TestSandboxFailpoints(t *testing.T) {
	early := []string{"sandbox.reserved", "sandbox.netns", "sandbox.network", "vm.scratch"}
	d := startPrepared(t, "memory_mib = 192\n", func(d *daemon) { d.failAt(early[0], "kill9") })
	for i := range early {
		_, err := d.tryPod("points")
		refused(t, early[i], err, codes.Unavailable)
		next := "sandbox.launched"
		if i+1 < len(early) {
			next = early[i+1]
		}
		d.crashed(next, "kill9")
		d.nothing("killed at " + early[i])
	}
	// With a guest that runs already.
	_, err := d.tryPod("points")
	refused(t, "sandbox.launched", err, codes.Unavailable)
	d.crashed("sandbox.ready", "kill9")
	d.nothing("killed at sandbox.launched")
	// Nobody was told of this one, but it is complete: it goes on and has its name.
	_, err = d.tryPod("points")
	refused(t, "sandbox.ready", err, codes.Unavailable)
	d.crashed("sandbox.stopping", "kill9")
	pod := d.only("killed at sandbox.ready", runtime.PodSandboxState_SANDBOX_READY)
	_, err = d.tryPod("points")
	refused(t, "a second pod of that name", err, codes.AlreadyExists, pod[:12])

	_, err = d.StopPodSandbox(d.call(), &runtime.StopPodSandboxRequest{PodSandboxId: pod})
	refused(t, "sandbox.stopping", err, codes.Unavailable)
	d.crashed("sandbox.removing", "kill9")
	d.only("killed at sandbox.stopping", runtime.PodSandboxState_SANDBOX_NOTREADY)
	_, err = d.RemovePodSandbox(d.call(), &runtime.RemovePodSandboxRequest{PodSandboxId: pod})
	refused(t, "sandbox.removing", err, codes.Unavailable)

	// The same as errors, of the daemon and of the shim: the call says so and leaves nothing.
	d.crashed("sandbox.reserved", "error")
	d.nothing("killed at sandbox.removing")
	points := append(early, "shim.boot", "vm.network", "sandbox.launched", "sandbox.ready")
	for i, point := range points {
		if i > 0 {
			d.restart(point, "error")
		}
		for range 2 - i/4 { // twice, where that takes no guest
			_, err := d.tryPod("points")
			injected(t, point, err)
		}
		d.nothing("error at " + point)
	}
	// A shim that dies while it boots its guest.
	for _, point := range []string{"shim.boot", "vm.network"} {
		d.restart(point, "kill9")
		_, err := d.tryPod("points")
		if err == nil || !strings.Contains(err.Error(), "shim") || status.Code(err) == codes.Unknown {
			t.Errorf("a shim killed at %s: %v", point, err)
		}
		d.nothing("shim killed at " + point)
	}
	d.restart("", "")
}

// TestContainerFailpoints is the same for containers, in one pod that outlives all the daemons.
func TestContainerFailpoints(t *testing.T) {
	d := startDaemon(t, "memory_mib = 192\n")
	d.pull(testImage)
	pod, config := d.runPod("points", nil)
	neighbour := d.launch(pod, config, shell("neighbour", forever))
	goesOn := func(when string) {
		t.Helper()
		pods, containers := d.all()
		expect(t, when+": pods", len(pods), 1)
		expect(t, when+": containers", len(containers), 1)
		expect(t, when+": the pod", pods[0].State, runtime.PodSandboxState_SANDBOX_READY)
		expect(t, when+": the neighbour", d.status(neighbour).State, runtime.ContainerState_CONTAINER_RUNNING)
		if bundles, err := os.ReadDir(filepath.Join(d.scope.State, "bundles")); err != nil || len(bundles) > 1 {
			t.Errorf("%s: bundles: %v %v", when, bundles, err)
		}
	}
	creating := []string{"container.reserved", "container.bundle", "container.created"}
	for _, point := range creating {
		d.restart(point, "error")
		for range 2 {
			_, err := d.tryContainer(pod, "victim")
			injected(t, point, err)
		}
		goesOn("error at " + point)
	}
	d.restart(creating[0], "kill9")
	for i, point := range creating {
		_, err := d.tryContainer(pod, "victim")
		refused(t, point, err, codes.Unavailable)
		next := "container.starting"
		if i+1 < len(creating) {
			next = creating[i+1]
		}
		d.crashed(next, "kill9")
		goesOn("killed at " + point)
	}
	// A start that was under way is finished by the next daemon.
	id, err := d.tryContainer(pod, "victim")
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: id})
	refused(t, "container.starting", err, codes.Unavailable)
	d.crashed("container.starting", "error")
	expect(t, "a container whose start was interrupted", d.status(id).State, runtime.ContainerState_CONTAINER_RUNNING)
	expect(t, "exec", d.execSync(id, "echo", "alive"), "alive\n")
	failed, err := d.tryContainer(pod, "failed")
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: failed})
	injected(t, "container.starting", err)
	expect(t, "a container whose start failed", d.status(failed).State, runtime.ContainerState_CONTAINER_EXITED)
	if _, err := d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: failed}); err != nil {
		t.Error(err)
	}
	// A removal that was begun is finished by the next daemon, and by the next call.
	other, err := d.tryContainer(pod, "other")
	if err != nil {
		t.Fatal(err)
	}
	d.restart("container.removing", "error")
	for range 2 {
		_, err = d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: other})
		injected(t, "container.removing", err)
	}
	d.restart("container.removing", "kill9")
	if err := d.unknown(other); err != nil {
		t.Errorf("a container whose removal was begun is still there: %v", err)
	}
	_, err = d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: id})
	refused(t, "container.removing", err, codes.Unavailable)
	d.crashed("", "")
	goesOn("killed at container.removing")
	d.stopAndRemove(pod)
	d.nothing("after all")
}

// TestShimCreateFails: the shim made the container in the guest and then fails, or dies.
func TestShimCreateFails(t *testing.T) {
	d := startPrepared(t, "memory_mib = 192\n", func(d *daemon) { d.failAt("shim.created", "error") })
	d.pull(testImage)
	pod, _ := d.runPod("points", nil)
	for range 2 {
		_, err := d.tryContainer(pod, "victim")
		injected(t, "shim.created", err)
	}
	_, containers := d.all()
	expect(t, "containers", len(containers), 0)
	d.stopAndRemove(pod)

	d.restart("shim.created", "kill9")
	pod, _ = d.runPod("points", nil)
	_, err := d.tryContainer(pod, "victim")
	if err == nil || status.Code(err) == codes.Unknown || status.Code(err) == codes.Internal {
		t.Errorf("create in a shim that dies: %v", err)
	}
	eventually(t, "the sandbox to be not ready", func() bool {
		return d.sandboxState(pod) == runtime.PodSandboxState_SANDBOX_NOTREADY
	})
	_, containers = d.all()
	expect(t, "containers", len(containers), 0)
	d.stopAndRemove(pod)
	d.nothing("shim killed at shim.created")
}
