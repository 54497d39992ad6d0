package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// testImage has a shell, an HTTP server and a few users; test/images builds it from Debian packages.
const testImage = "registry.test/pistis/tour:latest"

// call is the context of one request.
func (d *daemon) call() context.Context {
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	d.t.Cleanup(cancel)
	if d.traceparent != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", d.traceparent)
	}
	return ctx
}

// pull pulls an image and returns its id.
func (d *daemon) pull(image string) string {
	d.t.Helper()
	resp, err := d.images.PullImage(d.call(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}})
	if err != nil {
		d.t.Fatalf("pull %s: %v", image, err)
	}
	return resp.ImageRef
}

// podConfig is a pod that has what every pod needs.
func (d *daemon) podConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "test", Uid: name + "-uid"},
		Hostname:     name,
		LogDirectory: filepath.Join(d.scope.Root, "logs", name),
		Linux:        &runtime.LinuxPodSandboxConfig{SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: ownPID()}},
	}
}

// runPod runs a sandbox; adjust, where set, changes its configuration before.
func (d *daemon) runPod(name string, adjust func(*runtime.PodSandboxConfig)) (string, *runtime.PodSandboxConfig) {
	d.t.Helper()
	config := d.podConfig(name)
	if adjust != nil {
		adjust(config)
	}
	resp, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: d.handler})
	if err != nil {
		d.t.Fatalf("run pod %s: %v\n%s", name, err, d.logs())
	}
	return resp.PodSandboxId, config
}

// ownPID is what the kubelet asks for unless a pod shares its PID namespace.
func ownPID() *runtime.NamespaceOption {
	return &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}
}

// shell is a container that runs a script.
func shell(name, script string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: testImage},
		Command:  []string{"sh", "-c", script},
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{}, SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: ownPID()},
		},
	}
}

// forever keeps a container running until it is told to stop.
const forever = "trap 'exit 0' TERM; while :; do sleep 1 & wait; done"

func (d *daemon) create(pod string, podConfig *runtime.PodSandboxConfig, config *runtime.ContainerConfig) string {
	d.t.Helper()
	resp, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: podConfig})
	if err != nil {
		d.t.Fatalf("create container %s: %v", config.Metadata.Name, err)
	}
	return resp.ContainerId
}

func (d *daemon) startContainer(id string) {
	d.t.Helper()
	if _, err := d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: id}); err != nil {
		d.t.Fatalf("start container: %v\n%s", err, d.logs())
	}
}

// launch creates and starts a container.
func (d *daemon) launch(pod string, podConfig *runtime.PodSandboxConfig, config *runtime.ContainerConfig) string {
	d.t.Helper()
	id := d.create(pod, podConfig, config)
	d.startContainer(id)
	return id
}

func (d *daemon) status(id string) *runtime.ContainerStatus {
	d.t.Helper()
	resp, err := d.ContainerStatus(d.call(), &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		d.t.Fatalf("container status: %v", err)
	}
	return resp.Status
}

// eventually waits for a condition that no call reports; CRI clients poll, as the kubelet does.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// wait waits for a container's end.
func (d *daemon) wait(id string) *runtime.ContainerStatus {
	d.t.Helper()
	var status *runtime.ContainerStatus
	eventually(d.t, "the end of container "+id, func() bool {
		status = d.status(id)
		return status.State == runtime.ContainerState_CONTAINER_EXITED
	})
	return status
}

// run runs a script to its end in a pod and returns its standard output; the exit code must be 0.
func (d *daemon) run(pod string, podConfig *runtime.PodSandboxConfig, config *runtime.ContainerConfig) string {
	d.t.Helper()
	id := d.launch(pod, podConfig, config)
	status := d.wait(id)
	out := d.logOf(status, "stdout")
	if status.ExitCode != 0 {
		d.t.Fatalf("container %s: exit code %d (%s): %s\nstdout: %s\nstderr: %s", config.Metadata.Name, status.ExitCode, status.Reason, status.Message, out, d.logOf(status, "stderr"))
	}
	return out
}

// logOf is what a container wrote to a stream, put together from its CRI log.
func (d *daemon) logOf(status *runtime.ContainerStatus, stream string) string {
	d.t.Helper()
	raw, err := os.ReadFile(status.LogPath)
	if err != nil {
		d.t.Fatal(err)
	}
	return logText(d.t, string(raw), stream)
}

func logText(t *testing.T, raw, stream string) string {
	t.Helper()
	var text strings.Builder
	for line := range strings.Lines(raw) {
		parts := strings.SplitN(line, " ", 4)
		if len(parts) != 4 {
			t.Fatalf("not a line of a CRI log: %q", line)
		}
		if _, err := time.Parse(time.RFC3339Nano, parts[0]); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		if parts[1] != stream {
			continue
		}
		switch parts[2] {
		case "F":
			text.WriteString(parts[3])
		case "P":
			text.WriteString(strings.TrimSuffix(parts[3], "\n"))
		default:
			t.Fatalf("log line %q: tag %q", line, parts[2])
		}
	}
	return text.String()
}

// execSync runs a command in a container; its exit code must be 0.
func (d *daemon) execSync(id string, command ...string) string {
	d.t.Helper()
	resp, err := d.ExecSync(d.call(), &runtime.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64(patience.Seconds())})
	if err != nil {
		d.t.Fatalf("exec %q: %v", command, err)
	}
	if resp.ExitCode != 0 {
		d.t.Fatalf("exec %q: exit code %d: %s%s", command, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return string(resp.Stdout)
}

// ip is a pod's primary address.
func (d *daemon) ip(pod string) string {
	d.t.Helper()
	resp, err := d.PodSandboxStatus(d.call(), &runtime.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		d.t.Fatal(err)
	}
	if ip := resp.Status.GetNetwork().GetIp(); ip != "" {
		return ip
	}
	d.t.Fatal("the pod has no address")
	return ""
}

// info is a pod's verbose status.
func (d *daemon) info(pod string) map[string]string {
	d.t.Helper()
	resp, err := d.PodSandboxStatus(d.call(), &runtime.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.Info
}

// resizePod says how much memory the pod may use as a whole.
func (d *daemon) resizePod(pod string, memory int64) error {
	_, err := d.UpdatePodSandboxResources(d.call(), &runtime.UpdatePodSandboxResourcesRequest{
		PodSandboxId: pod, Resources: &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 200000, MemoryLimitInBytes: memory},
	})
	return err
}

func (d *daemon) sandboxState(pod string) runtime.PodSandboxState {
	d.t.Helper()
	resp, err := d.PodSandboxStatus(d.call(), &runtime.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.Status.State
}

// stopAndRemove takes a pod down the way the kubelet does.
func (d *daemon) stopAndRemove(pod string) {
	d.t.Helper()
	if _, err := d.StopPodSandbox(d.call(), &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		d.t.Fatalf("stop pod: %v", err)
	}
	if _, err := d.RemovePodSandbox(d.call(), &runtime.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		d.t.Fatalf("remove pod: %v", err)
	}
}

// script joins lines of a shell script that stops at the first failure.
func script(lines ...string) string { return "set -e\n" + strings.Join(lines, "\n") }

// expect compares what a test saw with what it should have.
func expect[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}
