package cri

import (
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	pistis "github.com/pistis-run/pistis/api/pistis/v1"
	"github.com/pistis-run/pistis/internal/cri/streaming"
	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/image"
)

// harness is a server on a Unix socket with an engine in memory, and clients of it.
type harness struct {
	t       *testing.T
	engine  *engine
	store   *store
	events  *event.Broker
	options Options
	runtime runtime.RuntimeServiceClient
	images  runtime.ImageServiceClient
	pistis  pistis.PistisClient
}

func newHarness(t *testing.T, change ...func(*Options)) *harness {
	t.Helper()
	h := &harness{t: t, engine: newEngine(), store: &store{}, events: event.NewBroker()}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	streams, err := streaming.Listen(streaming.Options{
		Address: "127.0.0.1:0", IdleTimeout: time.Minute, Processes: ctrs{h.engine}, Sandboxes: pods{h.engine}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.options = Options{
		Sandboxes: pods{h.engine}, Containers: ctrs{h.engine}, Images: h.store, Events: h.events, Streams: streams,
		ContainerFS: func(context.Context) (image.FSInfo, error) {
			return image.FSInfo{Mountpoint: "/pods", At: time.Now()}, nil
		},
		NetworkReady: func() error { return nil },
		SetPodCIDR:   func(context.Context, string) error { return nil },
		Handlers: Handlers{Default: "vm", Untrusted: "vm", ByName: map[string]Handler{
			"vm": {VM: true}, "host": {},
		}},
		Version: "v1.2.3", Log: log,
	}
	for _, c := range change {
		c(&h.options)
	}
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(Interceptors(log, nil)...)
	New(h.options).Register(server)
	NewOperator(h.store).Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageSize)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := streams.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	h.runtime, h.images, h.pistis = runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn), pistis.NewPistisClient(conn)
	return h
}

func podConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name, Attempt: 1},
		LogDirectory: "/var/log/pods/" + name,
		Labels:       map[string]string{"app": name}, Annotations: map[string]string{"note": "x"},
	}
}

func ctrConfig(name string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: "example.com/a:1"},
		Command: []string{"/bin/sh"}, LogPath: name + "/0.log", Labels: map[string]string{"c": name},
	}
}

func (h *harness) pod(name string) string {
	h.t.Helper()
	resp, err := h.runtime.RunPodSandbox(h.t.Context(), &runtime.RunPodSandboxRequest{Config: podConfig(name)})
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.PodSandboxId
}

func (h *harness) container(pod, name string, start bool) string {
	h.t.Helper()
	if _, err := h.images.PullImage(h.t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "example.com/a:1"}}); err != nil {
		h.t.Fatal(err)
	}
	resp, err := h.runtime.CreateContainer(h.t.Context(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: ctrConfig(name)})
	if err != nil {
		h.t.Fatal(err)
	}
	if start {
		if _, err := h.runtime.StartContainer(h.t.Context(), &runtime.StartContainerRequest{ContainerId: resp.ContainerId}); err != nil {
			h.t.Fatal(err)
		}
	}
	return resp.ContainerId
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
}

func TestSandboxes(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	one, two := h.pod("one"), h.pod("two")

	st, err := h.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: one[:12], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Status; s.Id != one || s.State != runtime.PodSandboxState_SANDBOX_READY || s.RuntimeHandler != "vm" || s.CreatedAt == 0 ||
		s.Network.Ip != "10.88.0.2" || s.Network.AdditionalIps[0].Ip != "fd00::2" || s.Annotations["note"] != "x" || st.Info["info"] == "" {
		t.Errorf("status %v", st)
	}

	list := func(f *runtime.PodSandboxFilter) (ids []string) {
		t.Helper()
		resp, err := h.runtime.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range resp.Items {
			ids = append(ids, s.Id)
		}
		return ids
	}
	if _, err := h.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: two}); err != nil {
		t.Fatal(err)
	}
	notReady := &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_NOTREADY}
	for _, tt := range []struct {
		filter *runtime.PodSandboxFilter
		want   []string
	}{
		{nil, []string{two, one}},
		{&runtime.PodSandboxFilter{Id: one[:8]}, []string{one}},
		{&runtime.PodSandboxFilter{State: notReady}, []string{two}},
		{&runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "one"}}, []string{one}},
		{&runtime.PodSandboxFilter{LabelSelector: map[string]string{"app": "one"}, State: notReady}, nil},
		{&runtime.PodSandboxFilter{LabelSelector: map[string]string{"absent": ""}}, nil},
	} {
		if got := list(tt.filter); !slices.Equal(got, tt.want) {
			t.Errorf("filter %v: got %v, want %v", tt.filter, got, tt.want)
		}
	}
	for range 2 { // idempotent
		if _, err := h.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: two}); err != nil {
			t.Error(err)
		}
		if _, err := h.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: two}); err != nil {
			t.Error(err)
		}
	}
	_, err = h.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: two})
	wantCode(t, err, codes.NotFound)
	_, err = h.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: podConfig("x"), RuntimeHandler: "kata"})
	wantCode(t, err, codes.InvalidArgument)
}

func TestContainers(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	pod := h.pod("p")
	_, err := h.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: pod, Config: ctrConfig("c")})
	wantCode(t, err, codes.NotFound) // no image
	_, err = h.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: "beef", Config: ctrConfig("c")})
	wantCode(t, err, codes.NotFound)

	id := h.container(pod, "c", true)
	other := h.container(h.pod("q"), "d", false)
	st, err := h.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id[:9], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Status; s.Id != id || s.State != runtime.ContainerState_CONTAINER_RUNNING || s.ImageId != testImage("example.com/a:1").ID.String() ||
		s.User.Linux.Uid != 7 || s.User.Linux.SupplementalGroups[0] != 9 || s.LogPath != "/logs/c/0.log" || st.Info["info"] == "" ||
		s.StartedAt == 0 || s.FinishedAt != 0 || s.Image.Image != "example.com/a:1" {
		t.Errorf("status %v", st)
	}

	for _, tt := range []struct {
		filter *runtime.ContainerFilter
		want   []string
	}{
		{nil, []string{other, id}},
		{&runtime.ContainerFilter{Id: id[:10]}, []string{id}},
		{&runtime.ContainerFilter{PodSandboxId: pod[:10]}, []string{id}},
		{&runtime.ContainerFilter{State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_CREATED}}, []string{other}},
		{&runtime.ContainerFilter{LabelSelector: map[string]string{"c": "d"}}, []string{other}},
		{&runtime.ContainerFilter{LabelSelector: map[string]string{"c": "d"}, PodSandboxId: pod}, nil},
	} {
		resp, err := h.runtime.ListContainers(ctx, &runtime.ListContainersRequest{Filter: tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range resp.Containers {
			got = append(got, c.Id)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("filter %v: got %v, want %v", tt.filter, got, tt.want)
		}
	}

	if _, err := h.runtime.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	_, err = h.runtime.ReopenContainerLog(ctx, &runtime.ReopenContainerLogRequest{ContainerId: other})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = h.runtime.UpdatePodSandboxResources(ctx, &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Overhead: &runtime.LinuxContainerResources{MemoryLimitInBytes: 7}})
	if err != nil {
		t.Error(err)
	}
	_, err = h.runtime.UpdatePodSandboxResources(ctx, &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 8}})
	if s, _ := h.runtime.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true}); err != nil ||
		!strings.Contains(s.Info["info"], `"Overhead":{"CPUPeriod":0,"CPUQuota":0,"CPUShares":0,"MemoryLimit":7},"Resources":{"CPUPeriod":0,"CPUQuota":0,"CPUShares":0,"MemoryLimit":8}`) {
		t.Errorf("%v, %v", s, err)
	}
	_, err = h.runtime.UpdatePodSandboxResources(ctx, &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: -2}})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.runtime.UpdatePodSandboxResources(ctx, &runtime.UpdatePodSandboxResourcesRequest{PodSandboxId: "gone"})
	wantCode(t, err, codes.NotFound)
	update := &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000}
	if _, err := h.runtime.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: update}); err != nil {
		t.Error(err)
	}
	_, err = h.runtime.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{ContainerId: id})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.runtime.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtime.LinuxContainerResources{OomScoreAdj: 5}})
	wantCode(t, err, codes.Unimplemented)
	// The kubelet sends a score of its own with every resize, and must not fail for it.
	update.OomScoreAdj = 5
	if _, err := h.runtime.UpdateContainerResources(ctx, &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: update}); err != nil {
		t.Error(err)
	}
	st, err = h.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil || st.Status.Resources.Linux.OomScoreAdj != 0 || st.Status.Resources.Linux.MemoryLimitInBytes != 64<<20 || st.Status.Resources.Linux.CpuQuota != 50000 {
		t.Errorf("%v, %v", st, err)
	}

	_, err = h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: -1})
	wantCode(t, err, codes.InvalidArgument)
	if _, err := h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: 1 << 62}); err != nil {
		t.Error(err)
	}
	st, err = h.runtime.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	if err != nil || st.Status.State != runtime.ContainerState_CONTAINER_EXITED || st.Status.ExitCode != 143 || st.Status.Reason != "Error" {
		t.Errorf("%v, %v", st, err)
	}
	for range 2 {
		if _, err := h.runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
		if _, err := h.runtime.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}
	_, err = h.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id})
	wantCode(t, err, codes.NotFound)
	if _, err := h.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	_, err = h.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: pod, Config: ctrConfig("late")})
	wantCode(t, err, codes.FailedPrecondition)
}
