package endpoint

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a sandbox with one container.
type Pod struct {
	Sandbox, Container string
	Config             *runtime.PodSandboxConfig
}

// logName is the file of the container's log in the pod's directory.
const logName = "main/0.log"

// Log is the path of the container's log.
func (p Pod) Log() string { return filepath.Join(p.Config.LogDirectory, logName) }

// Pod is one that was not started yet.
func (e *Endpoint) Pod(name string) Pod { return Pod{Config: e.config(name)} }

// config is a pod as the kubelet describes one.
func (e *Endpoint) config(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "peers", Uid: name},
		Hostname:     name,
		LogDirectory: filepath.Join(e.dir, "logs", name),
		DnsConfig:    &runtime.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"peers.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "peers", "io.kubernetes.pod.uid": name},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    e.Scope.Cgroup,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: isolated()},
		},
	}
}

func isolated() *runtime.NamespaceOption {
	return &runtime.NamespaceOption{Network: runtime.NamespaceMode_POD, Pid: runtime.NamespaceMode_CONTAINER, Ipc: runtime.NamespaceMode_POD}
}

// Container is a small burstable container as the kubelet describes one.
func Container(image string, command []string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "main"}, Image: &runtime.ImageSpec{Image: image}, Command: command, LogPath: logName,
		Labels: map[string]string{"io.kubernetes.container.name": "main"},
		Envs:   []*runtime.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")}},
		Linux: &runtime.LinuxContainerConfig{
			Resources: &runtime.LinuxContainerResources{CpuShares: 102, CpuPeriod: 100000, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 999},
			SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: isolated(), RunAsUser: &runtime.Int64Value{}, NoNewPrivs: true,
				MaskedPaths: []string{
					"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
					"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
				},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

// Run starts a pod: sandbox, container, process. What it made before it failed is in the pod that it returns.
func (e *Endpoint) Run(ctx context.Context, handler, name, image string, command ...string) (Pod, error) {
	p := e.Pod(name)
	sandbox, err := e.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: handler})
	if err != nil {
		return p, fmt.Errorf("%s: RunPodSandbox: %w", e.Name, err)
	}
	p.Sandbox = sandbox.PodSandboxId
	created, err := e.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.Sandbox, SandboxConfig: p.Config, Config: Container(image, command)})
	if err != nil {
		return p, fmt.Errorf("%s: CreateContainer: %w", e.Name, err)
	}
	p.Container = created.ContainerId
	if _, err := e.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.Container}); err != nil {
		return p, fmt.Errorf("%s: StartContainer: %w", e.Name, err)
	}
	return p, nil
}

// Remove ends a pod as a client that wants it away at once.
func (e *Endpoint) Remove(ctx context.Context, sandbox string) error {
	if _, err := e.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("%s: StopPodSandbox: %w", e.Name, err)
	}
	if _, err := e.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		return fmt.Errorf("%s: RemovePodSandbox: %w", e.Name, err)
	}
	return nil
}

// RemoveAll removes every pod that the daemon has.
func (e *Endpoint) RemoveAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pods, err := e.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("%s: ListPodSandbox: %w", e.Name, err)
	}
	for _, p := range pods.Items {
		err = errors.Join(err, e.Remove(ctx, p.Id))
	}
	return err
}

// Pull fetches an image.
func (e *Endpoint) Pull(ctx context.Context, image string) error {
	if _, err := e.Images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}}); err != nil {
		return fmt.Errorf("%s: PullImage: %w", e.Name, err)
	}
	return nil
}

// Served returns an error unless the daemon serves n pods and their containers, all of them running.
func (e *Endpoint) Served(ctx context.Context, n int) error {
	ready := &runtime.PodSandboxFilter{State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY}}
	pods, err := e.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: ready})
	if err != nil {
		return err
	}
	running := &runtime.ContainerFilter{State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}}
	containers, err := e.ListContainers(ctx, &runtime.ListContainersRequest{Filter: running})
	if err != nil {
		return err
	}
	if len(pods.Items) != n || len(containers.Containers) != n {
		return fmt.Errorf("%s serves %d pods and %d containers of %d", e.Name, len(pods.Items), len(containers.Containers), n)
	}
	for _, c := range containers.Containers {
		status, err := e.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: c.Id})
		if err != nil {
			return err
		}
		if status.Status.State != runtime.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("%s: container %s is listed as running and %v", e.Name, c.Id, status.Status.State)
		}
	}
	return nil
}
