package cri

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/cri/convert"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// sandboxLifecycle makes and ends sandboxes and what is in them. Stop and Remove are idempotent and nil for an
// unknown id.
type sandboxLifecycle interface {
	Run(ctx context.Context, cfg sandbox.Config) (id string, err error)
	Stop(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// UpdateResources leaves what is nil as it is.
	UpdateResources(ctx context.Context, id string, overhead, resources *sandbox.Resources) error
}

// sandboxReader looks at those that somebody was told of. Status takes an id or an unambiguous prefix of one.
type sandboxReader interface {
	Status(ctx context.Context, id string) (sandbox.Status, error)
	// Describe is Status for people; it asks the instance.
	Describe(ctx context.Context, id string) (sandbox.Status, error)
	List(ctx context.Context) []sandbox.Status
}

// sandboxCalls are the calls about sandboxes.
type sandboxCalls struct {
	sandboxes interface {
		sandboxLifecycle
		sandboxReader
	}
	containers containerReader
	handlers   Handlers
}

// RunPodSandbox makes a sandbox and returns when it is ready.
func (c *sandboxCalls) RunPodSandbox(ctx context.Context, req *runtime.RunPodSandboxRequest) (*runtime.RunPodSandboxResponse, error) {
	cfg, err := convert.Sandbox(req.GetConfig())
	if err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	if cfg.Handler, err = c.handlers.Select(req.RuntimeHandler, cfg.Annotations); err != nil {
		return nil, fmt.Errorf("run pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	if err := fitsHandler(cfg, c.handlers.ByName[cfg.Handler]); err != nil {
		return nil, fmt.Errorf("run pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	if err := c.handlers.ready(cfg.Handler); err != nil {
		return nil, fmt.Errorf("run pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	id, err := c.sandboxes.Run(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("run pod %s/%s: %w", cfg.Namespace, cfg.Name, err)
	}
	return &runtime.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox stops a sandbox, and its containers with it.
func (c *sandboxCalls) StopPodSandbox(ctx context.Context, req *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	id, err := c.resolve(ctx, req.PodSandboxId)
	if id == "" || err != nil {
		return &runtime.StopPodSandboxResponse{}, err
	}
	if err := c.sandboxes.Stop(ctx, id); err != nil {
		return nil, fmt.Errorf("stop pod %s: %w", id, err)
	}
	return &runtime.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a sandbox, and its containers with it, stopping what runs.
func (c *sandboxCalls) RemovePodSandbox(ctx context.Context, req *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	id, err := c.resolve(ctx, req.PodSandboxId)
	if id == "" || err != nil {
		return &runtime.RemovePodSandboxResponse{}, err
	}
	if err := c.sandboxes.Remove(ctx, id); err != nil {
		return nil, fmt.Errorf("remove pod %s: %w", id, err)
	}
	return &runtime.RemovePodSandboxResponse{}, nil
}

// UpdatePodSandboxResources takes what the pod as a whole may use from now on, after the kubelet has changed the pod's
// cgroup itself.
func (c *sandboxCalls) UpdatePodSandboxResources(ctx context.Context, req *runtime.UpdatePodSandboxResourcesRequest) (*runtime.UpdatePodSandboxResourcesResponse, error) {
	if err := requireID("pod sandbox", req.PodSandboxId); err != nil {
		return nil, fmt.Errorf("update pod: %w", err)
	}
	s, err := c.sandboxes.Status(ctx, req.PodSandboxId)
	if err != nil {
		return nil, fmt.Errorf("update pod %s: %w", req.PodSandboxId, err)
	}
	given := func(field string, r *runtime.LinuxContainerResources) (*sandbox.Resources, error) {
		if r == nil {
			return nil, nil
		}
		out, err := convert.SandboxResources(field, r)
		return &out, err
	}
	overhead, err := given("overhead", req.Overhead)
	if err != nil {
		return nil, fmt.Errorf("update pod %s: %w", s.ID, err)
	}
	resources, err := given("resources", req.Resources)
	if err != nil {
		return nil, fmt.Errorf("update pod %s: %w", s.ID, err)
	}
	if err := c.sandboxes.UpdateResources(ctx, s.ID, overhead, resources); err != nil {
		return nil, fmt.Errorf("update pod %s: %w", s.ID, err)
	}
	return &runtime.UpdatePodSandboxResourcesResponse{}, nil
}

// resolve returns the whole id, or "" when there is no such sandbox, which Stop and Remove take for done.
func (c *sandboxCalls) resolve(ctx context.Context, id string) (string, error) {
	if err := requireID("pod sandbox", id); err != nil {
		return "", err
	}
	s, err := c.sandboxes.Status(ctx, id)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	return s.ID, err
}

// PodSandboxStatus describes a sandbox and its containers.
func (c *sandboxCalls) PodSandboxStatus(ctx context.Context, req *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	if err := requireID("pod sandbox", req.PodSandboxId); err != nil {
		return nil, err
	}
	now, status := time.Now(), c.sandboxes.Status
	if req.Verbose {
		status = c.sandboxes.Describe
	}
	s, err := status(ctx, req.PodSandboxId)
	if err != nil {
		return nil, fmt.Errorf("status of pod %s: %w", req.PodSandboxId, err)
	}
	resp := &runtime.PodSandboxStatusResponse{
		Status: sandboxStatus(s), ContainersStatuses: statusesOf(c.containers.List(ctx), s.ID), Timestamp: now.UnixNano(),
	}
	if req.Verbose {
		// What the runtime says of itself are plain strings, as 12ms; all else is JSON.
		resp.Info = maps.Clone(s.Info)
		if resp.Info == nil {
			resp.Info = map[string]string{}
		}
		details := map[string]any{"config": s.Config, "netns": s.NetNS, "state": s.State, "reason": s.Reason}
		if err := addInfo(resp.Info, "info", details); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// ListPodSandbox lists the sandboxes that the filter lets through, the newest first.
func (c *sandboxCalls) ListPodSandbox(ctx context.Context, req *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return &runtime.ListPodSandboxResponse{Items: c.list(ctx, req.GetFilter())}, nil
}

func (c *sandboxCalls) list(ctx context.Context, filter *runtime.PodSandboxFilter) []*runtime.PodSandbox {
	var list []*runtime.PodSandbox
	for _, s := range newestFirst(c.sandboxes.List(ctx)) {
		if !matchesSandbox(s, filter) {
			continue
		}
		list = append(list, &runtime.PodSandbox{
			Id: s.ID, Metadata: sandboxMetadata(s.Config), State: sandboxState(s.State), CreatedAt: s.Created.UnixNano(),
			Labels: s.Config.Labels, Annotations: s.Config.Annotations, RuntimeHandler: s.Config.Handler,
		})
	}
	return list
}

func newestFirst(list []sandbox.Status) []sandbox.Status {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b sandbox.Status) int { return b.Created.Compare(a.Created) })
	return list
}

func matchesSandbox(s sandbox.Status, f *runtime.PodSandboxFilter) bool {
	return strings.HasPrefix(s.ID, f.GetId()) &&
		(f.GetState() == nil || f.State.State == sandboxState(s.State)) &&
		matchesLabels(s.Config.Labels, f.GetLabelSelector())
}

// matchesLabels: every pair of the selector is among the labels.
func matchesLabels(labels, selector map[string]string) bool {
	for key, want := range selector {
		if got, ok := labels[key]; !ok || got != want {
			return false
		}
	}
	return true
}

func sandboxState(s sandbox.State) runtime.PodSandboxState {
	if s == sandbox.Ready {
		return runtime.PodSandboxState_SANDBOX_READY
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxMetadata(cfg sandbox.Config) *runtime.PodSandboxMetadata {
	return &runtime.PodSandboxMetadata{Name: cfg.Name, Uid: cfg.UID, Namespace: cfg.Namespace, Attempt: cfg.Attempt}
}

func sandboxStatus(s sandbox.Status) *runtime.PodSandboxStatus {
	network := &runtime.PodSandboxNetworkStatus{}
	for i, ip := range s.IPs {
		if i == 0 {
			network.Ip = ip
			continue
		}
		network.AdditionalIps = append(network.AdditionalIps, &runtime.PodIP{Ip: ip})
	}
	mode := func(host bool) runtime.NamespaceMode {
		if host {
			return runtime.NamespaceMode_NODE
		}
		return runtime.NamespaceMode_POD
	}
	options := &runtime.NamespaceOption{
		Network: mode(s.Config.HostNetwork), Ipc: mode(s.Config.HostIPC), Pid: mode(s.Config.HostPID),
	}
	if !s.Config.HostPID && !s.Config.SharedPID {
		options.Pid = runtime.NamespaceMode_CONTAINER
	}
	return &runtime.PodSandboxStatus{
		Id: s.ID, Metadata: sandboxMetadata(s.Config), State: sandboxState(s.State), CreatedAt: s.Created.UnixNano(),
		Network: network, Linux: &runtime.LinuxPodSandboxStatus{Namespaces: &runtime.Namespace{Options: options}},
		Labels: maps.Clone(s.Config.Labels), Annotations: maps.Clone(s.Config.Annotations), RuntimeHandler: s.Config.Handler,
	}
}

// statusesOf are the statuses of one sandbox's containers.
func statusesOf(list []container.Status, sandboxID string) []*runtime.ContainerStatus {
	var statuses []*runtime.ContainerStatus
	for _, s := range list {
		if s.Config.SandboxID == sandboxID {
			statuses = append(statuses, containerStatus(s))
		}
	}
	return statuses
}
