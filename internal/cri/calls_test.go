package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	pistis "github.com/pistis-run/pistis/api/pistis/v1"
	"github.com/pistis-run/pistis/internal/event"
	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

func TestVersionAndStatus(t *testing.T) {
	h := newHarness(t, func(o *Options) {
		o.NetworkReady = func() error { return errors.New("no CNI configuration") }
		o.Info = map[string]any{"config": map[string]string{"root": "/x"}}
		o.SystemdCgroups = true
		o.SetPodCIDR = func(_ context.Context, cidr string) error {
			if cidr != "10.0.0.0/24" {
				return fmt.Errorf("not ours: %w", errdefs.ErrFailedPrecondition)
			}
			return nil
		}
		o.Handlers.ByName["broken"] = Handler{VM: true, Ready: func() error {
			return fmt.Errorf("run `pistis guest build`: %w", errdefs.ErrFailedPrecondition)
		}}
	})
	ctx := t.Context()
	v, err := h.runtime.Version(ctx, &runtime.VersionRequest{})
	if err != nil || v.RuntimeName != "pistis" || v.RuntimeVersion != "1.2.3" || v.RuntimeApiVersion != "v1" {
		t.Errorf("%v, %v", v, err)
	}
	st, err := h.runtime.Status(ctx, &runtime.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	conditions := map[string]*runtime.RuntimeCondition{}
	for _, c := range st.Status.Conditions {
		conditions[c.Type] = c
	}
	if !conditions["RuntimeReady"].Status || conditions["NetworkReady"].Status || conditions["NetworkReady"].Message == "" ||
		conditions["HandlerReady/broken"].Status || !conditions["HandlerReady/vm"].Status {
		t.Errorf("conditions %v", conditions)
	}
	if len(st.RuntimeHandlers) != 4 || !st.Features.SupplementalGroupsPolicy || st.Info["config"] != `{"root":"/x"}` {
		t.Errorf("status %v", st)
	}
	_, err = h.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: podConfig("x"), RuntimeHandler: "broken"})
	wantCode(t, err, codes.FailedPrecondition)
	if !strings.Contains(err.Error(), "pistis guest build") {
		t.Error(err)
	}
	cfg, err := h.runtime.RuntimeConfig(ctx, &runtime.RuntimeConfigRequest{})
	if err != nil || cfg.Linux.CgroupDriver != runtime.CgroupDriver_SYSTEMD {
		t.Errorf("%v, %v", cfg, err)
	}
	for cidr, want := range map[string]codes.Code{"": codes.OK, "10.0.0.0/24": codes.OK, "10.1.0.0/24": codes.FailedPrecondition} {
		_, err := h.runtime.UpdateRuntimeConfig(ctx, &runtime.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtime.RuntimeConfig{NetworkConfig: &runtime.NetworkConfig{PodCidr: cidr}},
		})
		wantCode(t, err, want)
	}
}

func TestSemanticVersion(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2.3-4-gabc": "1.2.3-4-gabc", "unknown": "0.0.0+unknown", "abc/dirty": "0.0.0+abc-dirty", "": "0.0.0",
	} {
		if got := semanticVersion(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestUnbuilt(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	_, err := h.runtime.CheckpointPod(ctx, &runtime.CheckpointPodRequest{})
	wantCode(t, err, codes.Unimplemented)
	if !strings.Contains(status.Convert(err).Message(), "not supported by this version") {
		t.Error(err)
	}
}

func TestExecSync(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	id := h.container(h.pod("p"), "c", true)
	resp, err := h.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "x"}})
	if err != nil || string(resp.Stdout) != "echo x" || string(resp.Stderr) != "oops" || resp.ExitCode != 3 {
		t.Errorf("%v, %v", resp, err)
	}
	_, err = h.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep"}, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded)
	_, err = h.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"panic"}})
	wantCode(t, err, codes.Internal)
	created := h.container(h.pod("q"), "c", false)
	_, err = h.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: created, Cmd: []string{"x"}})
	wantCode(t, err, codes.FailedPrecondition)
	_, err = h.runtime.Exec(ctx, &runtime.ExecRequest{ContainerId: id, Cmd: []string{"x"}})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.runtime.Attach(ctx, &runtime.AttachRequest{ContainerId: id, Stdout: true, Tty: true})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.runtime.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: "gone", Port: []int32{80}})
	wantCode(t, err, codes.NotFound)
}

func TestFitTogether(t *testing.T) {
	for _, tt := range [][5]int{ // a, b, limit, want a, want b
		{3, 4, 10, 3, 4}, {8, 4, 10, 6, 4}, {4, 8, 10, 4, 6}, {8, 8, 10, 5, 5}, {20, 0, 10, 10, 0}, {0, 20, 10, 0, 10}, {10, 6, 10, 5, 5},
	} {
		a, b := fitTogether(make([]byte, tt[0]), make([]byte, tt[1]), tt[2])
		if len(a) != tt[3] || len(b) != tt[4] {
			t.Errorf("%v: got %d and %d", tt, len(a), len(b))
		}
	}
}

func TestCodes(t *testing.T) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		ctx  context.Context
		err  error
		want codes.Code
	}{
		{context.Background(), errors.New("x"), codes.Internal},
		{context.Background(), fmt.Errorf("x: %w", errdefs.ErrUnknown), codes.Internal},
		{context.Background(), status.Error(codes.Unknown, "x"), codes.Internal},
		{context.Background(), status.Error(codes.NotFound, "x"), codes.NotFound},
		{context.Background(), fmt.Errorf("x: %w", context.Canceled), codes.Canceled},
		{context.Background(), fmt.Errorf("x: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{ended, errors.New("closed connection"), codes.Canceled},
		{ended, fmt.Errorf("x: %w", errdefs.ErrNotFound), codes.NotFound},
		{context.Background(), errors.Join(errors.New("y"), fmt.Errorf("x: %w", errdefs.ErrResourceExhausted)), codes.ResourceExhausted},
		{context.Background(), fmt.Errorf("save record: %w", &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}), codes.ResourceExhausted},
	} {
		err := toStatus(tt.ctx, tt.err)
		if status.Code(err) != tt.want || !strings.Contains(err.Error(), "desc = ") {
			t.Errorf("%v: got %v, want %v", tt.err, err, tt.want)
		}
	}
}

func TestStats(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	pod := h.pod("p")
	id := h.container(pod, "c", true)
	silent := h.pod("silent") // does not answer
	h.container(silent, "s", true)
	at := time.Now()
	sample := func(after time.Duration, usage uint64) {
		h.engine.mu.Lock()
		defer h.engine.mu.Unlock()
		h.engine.stats[pod] = task.Stats{
			At: at.Add(after), CPU: task.CPU{UsageNS: usage}, Memory: task.Memory{WorkingSet: 5, Usage: 6}, IOPSI: &task.PSI{Full: task.PSIData{Total: 4}},
			Interfaces: []task.Interface{{Name: "lo"}, {Name: "eth0", Rx: task.Traffic{Bytes: 9}}, {Name: "eth1"}},
			Containers: []task.ContainerStats{{
				ID: id, CPU: task.CPU{UsageNS: usage / 2, PSI: &task.PSI{Some: task.PSIData{Total: 3}}},
				Memory: task.Memory{WorkingSet: 50, Usage: 60, RSS: 70}, IO: &task.IO{PSI: &task.PSI{Some: task.PSIData{Total: 5}}}, Pids: 2, WritableBytes: 80, WritableInodes: 90,
			}},
		}
	}
	sample(0, 1e9)
	list, err := h.runtime.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].Cpu.UsageNanoCores != nil {
		t.Fatalf("%v, %v", list, err)
	}
	sample(2*time.Second, 3e9) // the container used half of one core
	one, err := h.runtime.ContainerStats(ctx, &runtime.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	if s := one.Stats; s.Cpu.UsageNanoCores.GetValue() != 5e8 || s.Memory.WorkingSetBytes.Value != 50 || s.Memory.RssBytes.Value != 70 ||
		s.WritableLayer.UsedBytes.Value != 80 || s.WritableLayer.FsId.Mountpoint != "/pods" || s.Cpu.Psi.Some.Total != 3000 || s.Io.Psi.Some.Total != 5000 ||
		s.Attributes.Metadata.Name != "c" {
		t.Errorf("stats %v", s)
	}
	pods, err := h.runtime.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{
		Filter: &runtime.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "p"}},
	})
	if err != nil || len(pods.Stats) != 1 {
		t.Fatalf("%v, %v", pods, err)
	}
	if l := pods.Stats[0].Linux; l.Network.DefaultInterface.Name != "eth0" || len(l.Network.Interfaces) != 1 || l.Process.ProcessCount.Value != 2 ||
		len(l.Containers) != 1 || l.Memory.UsageBytes.Value != 6 || l.Io.Psi.Full.Total != 4000 {
		t.Errorf("pod stats %v", l)
	}
	_, err = h.runtime.PodSandboxStats(ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: silent})
	wantCode(t, err, codes.FailedPrecondition)
}

func TestSampler(t *testing.T) {
	now := time.Now()
	s := newSampler(func() time.Time { return now })
	if _, ok := s.rate("a", now, 0); ok {
		t.Error("a rate from one sample")
	}
	if got, ok := s.rate("a", now.Add(time.Second), 1e9); !ok || got != 1e9 {
		t.Error(got, ok)
	}
	if got, ok := s.rate("a", now.Add(time.Second+time.Millisecond), 5e9); !ok || got != 1e9 {
		t.Error("a rate from too short a window:", got, ok)
	}
	if _, ok := s.rate("a", now.Add(3*time.Second), 1); ok {
		t.Error("a rate from a counter that went back")
	}
	now = now.Add(2 * maxSampleAge)
	s.rate("b", now, 0)
	if len(s.last) != 1 {
		t.Error("an old sample is kept:", s.last)
	}
}

// TestEvents: what comes after the header is not missed, and carries the state of its own moment.
func TestEvents(t *testing.T) {
	done := make(chan struct{})
	h := newHarness(t, func(o *Options) { o.Done = done })
	h.events.SetDescribe(DescribeEvents(pods{h.engine}, ctrs{h.engine}))
	pod := h.pod("p")
	id := h.container(pod, "c", false)
	h.events.Publish(event.Event{Kind: event.Created, ID: id, SandboxID: pod}) // nobody listens yet
	stream, err := h.runtime.GetContainerEvents(t.Context(), &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := h.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	h.events.Publish(event.Event{Kind: event.Started, ID: id, SandboxID: pod})
	if _, err := h.runtime.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	h.events.Publish(event.Event{Kind: event.Deleted, ID: id, SandboxID: pod})
	if _, err := h.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	deleted := h.events.Describe(event.Event{Kind: event.Deleted, ID: pod, SandboxID: pod})
	if _, err := h.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	h.events.Publish(deleted)
	at := int64(0)
	for _, want := range []struct {
		kind       runtime.ContainerEventType
		id         string
		pod        runtime.PodSandboxState
		containers []runtime.ContainerState
	}{
		{runtime.ContainerEventType_CONTAINER_CREATED_EVENT, id, runtime.PodSandboxState_SANDBOX_READY, []runtime.ContainerState{runtime.ContainerState_CONTAINER_CREATED}},
		{runtime.ContainerEventType_CONTAINER_STARTED_EVENT, id, runtime.PodSandboxState_SANDBOX_READY, []runtime.ContainerState{runtime.ContainerState_CONTAINER_RUNNING}},
		{runtime.ContainerEventType_CONTAINER_DELETED_EVENT, id, runtime.PodSandboxState_SANDBOX_READY, nil},
		{runtime.ContainerEventType_CONTAINER_DELETED_EVENT, pod, runtime.PodSandboxState_SANDBOX_NOTREADY, nil},
	} {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var states []runtime.ContainerState
		for _, c := range e.ContainersStatuses {
			states = append(states, c.State)
		}
		if e.ContainerId != want.id || e.ContainerEventType != want.kind || e.PodSandboxStatus.GetId() != pod || e.PodSandboxStatus.GetState() != want.pod ||
			!slices.Equal(states, want.containers) || e.CreatedAt < at {
			t.Errorf("got %v, want %+v", e, want)
		}
		at = e.CreatedAt
	}
	close(done)
	_, err = stream.Recv()
	wantCode(t, err, codes.Unavailable)
}

// TestSlowListener: a client that does not read is told so, once it does.
func TestSlowListener(t *testing.T) {
	h := newHarness(t)
	stream, err := h.runtime.GetContainerEvents(t.Context(), &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	// More than the broker keeps and than fits between server and client.
	h.events.SetDescribe(func(event.Event) any {
		return eventState{pod: &runtime.PodSandboxStatus{Id: strings.Repeat("x", 4<<10)}}
	})
	for range 4 * event.Backlog {
		h.events.Publish(event.Event{})
	}
	for err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.ResourceExhausted)
}

func TestImages(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	spec := &runtime.ImageSpec{Image: "example.com/a:1"}
	pulled, err := h.images.PullImage(ctx, &runtime.PullImageRequest{Image: spec, Auth: &runtime.AuthConfig{Username: "u", Password: "p", IdentityToken: "i"}})
	if err != nil || pulled.ImageRef != testImage(spec.Image).ID.String() {
		t.Fatalf("%v, %v", pulled, err)
	}
	if h.store.auth.Username != "u" || h.store.auth.IdentityToken != "i" {
		t.Errorf("auth %+v", h.store.auth)
	}
	st, err := h.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil || st.Image.Id != pulled.ImageRef || st.Image.Username != "nobody" || st.Image.Size != 1234 || !strings.Contains(st.Info["info"], "imageSpec") {
		t.Errorf("%v, %v", st, err)
	}
	st, err = h.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "nope"}})
	if err != nil || st.Image != nil {
		t.Errorf("%v, %v", st, err)
	}
	for ref, want := range map[string]int{"": 1, spec.Image: 1, "nope": 0} {
		list, err := h.images.ListImages(ctx, &runtime.ListImagesRequest{Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: ref}}})
		if err != nil || len(list.Images) != want {
			t.Errorf("%q: %v, %v", ref, list, err)
		}
	}
	fs, err := h.images.ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{})
	if err != nil || fs.ImageFilesystems[0].UsedBytes.Value != 42 || fs.ContainerFilesystems[0].FsId.Mountpoint != "/pods" {
		t.Errorf("%v, %v", fs, err)
	}
	for range 2 {
		if _, err := h.images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: spec}); err != nil {
			t.Error(err)
		}
	}
	_, err = h.images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "a", RuntimeHandler: "kata"}})
	wantCode(t, err, codes.InvalidArgument)
	_, err = h.images.PullImage(ctx, &runtime.PullImageRequest{})
	wantCode(t, err, codes.InvalidArgument)
	h.store.fail = fmt.Errorf("dial: %w", errdefs.ErrUnavailable)
	_, err = h.images.PullImage(ctx, &runtime.PullImageRequest{Image: spec})
	wantCode(t, err, codes.Unknown) // the only code that the kubelet's client takes off the message
	if !strings.HasPrefix(status.Convert(err).Message(), "RegistryUnavailable") {
		t.Error(err)
	}
	h.store.fail = fmt.Errorf("%w: not signed: %w", image.ErrSignature, errdefs.ErrPermissionDenied)
	_, err = h.images.PullImage(ctx, &runtime.PullImageRequest{Image: spec})
	wantCode(t, err, codes.Unknown) // likewise
	if !strings.HasPrefix(status.Convert(err).Message(), "SignatureValidationFailed") {
		t.Error(err)
	}
}

func TestImageOfAHostileAuthorFitsIntoTheList(t *testing.T) {
	img := testImage("example.com/a:1")
	img.Manifest.Annotations = map[string]string{"a": strings.Repeat("x", 4<<20)}
	img.Config.Config.User = strings.Repeat("é", 4<<20)
	if out := toCRIImage(img); proto.Size(out) > 4<<10 || !utf8.ValidString(out.Username) || out.Username == "" {
		t.Errorf("%d bytes, user %q", proto.Size(out), out.Username)
	}
	img.Manifest.Annotations = map[string]string{"a": "b"}
	if out := toCRIImage(img); out.Spec.Annotations["a"] != "b" {
		t.Errorf("annotations %v", out.Spec.Annotations)
	}
}

func TestOperator(t *testing.T) {
	h := newHarness(t)
	ctx := t.Context()
	pull, err := h.pistis.Pull(ctx, &pistis.PullRequest{Image: "example.com/b:2", Username: "u"})
	if err != nil {
		t.Fatal(err)
	}
	var last *pistis.PullProgress
	for {
		p, err := pull.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		last = p
	}
	if last.GetId() == "" || last.Status != "done" {
		t.Errorf("last progress %v", last)
	}

	in, err := h.pistis.Import(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := in.Send(&pistis.Chunk{Data: make([]byte, 1000)}); err != nil {
			t.Fatal(err)
		}
	}
	imported, err := in.CloseAndRecv()
	if err != nil || imported.Images[0].Tags[0] != "imported:3000" {
		t.Errorf("%v, %v", imported, err)
	}
	in, err = h.pistis.Import(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_ = in.Send(&pistis.Chunk{Data: make([]byte, maxChunk+1)})
	_, err = in.CloseAndRecv()
	wantCode(t, err, codes.InvalidArgument)

	out, err := h.pistis.Export(ctx, &pistis.ExportRequest{Images: []string{"abc", "de"}})
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	for {
		chunk, err := out.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(chunk.Data) > maxChunk {
			t.Errorf("a chunk of %d bytes", len(chunk.Data))
		}
		archive.Write(chunk.Data)
	}
	if archive.String() != strings.Repeat("abc", 300_000)+strings.Repeat("de", 300_000) {
		t.Errorf("%d bytes came out", archive.Len())
	}
}

func TestHandlerOf(t *testing.T) {
	h := newHarness(t)
	server := New(h.options)
	pod := h.pod("p") // of the default handler
	id := h.container(pod, "c", false)
	for _, tt := range []struct {
		req  any
		want string
	}{
		{&runtime.RunPodSandboxRequest{RuntimeHandler: "host"}, "host"},
		{&runtime.RunPodSandboxRequest{Config: &runtime.PodSandboxConfig{Annotations: map[string]string{UntrustedAnnotation: "true"}}}, "vm"},
		{&runtime.RunPodSandboxRequest{RuntimeHandler: "made-up"}, ""},
		{&runtime.StopPodSandboxRequest{PodSandboxId: pod[:9]}, "vm"},
		{&runtime.ExecSyncRequest{ContainerId: id}, "vm"},
		{&runtime.ExecSyncRequest{ContainerId: "gone"}, ""},
		{&runtime.VersionRequest{}, ""},
		{nil, ""},
	} {
		if got := server.HandlerOf(tt.req); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.req, got, tt.want)
		}
	}
}

// TestTypedErrors: errors with a name of their own in CRI are marked with it.
func TestTypedErrors(t *testing.T) {
	h := newHarness(t, func(o *Options) {
		o.Handlers.ByName["old"] = Handler{RecursiveReadOnly: func() error { return fmt.Errorf("old kernel: %w", errdefs.ErrFailedPrecondition) }}
	})
	ctx := t.Context()
	run, err := h.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: podConfig("old"), RuntimeHandler: "old"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := ctrConfig("c")
	cfg.Mounts = []*runtime.Mount{{ContainerPath: "/data", HostPath: "/data", Readonly: true, RecursiveReadOnly: true}}
	_, err = h.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: cfg})
	wantCode(t, err, codes.FailedPrecondition)
	if !strings.HasPrefix(status.Convert(err).Message(), `RROUnsupported: create container "c": mount at /data: old kernel`) {
		t.Error(err)
	}
	st, err := h.runtime.Status(ctx, &runtime.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, handler := range st.RuntimeHandlers {
		if handler.Features.RecursiveReadOnlyMounts != (handler.Name != "old") {
			t.Errorf("%v", handler)
		}
	}
}

// TestEngineErrors: what the engine says keeps its class on the way out.
func TestEngineErrors(t *testing.T) {
	h := newHarness(t)
	h.engine.fail = fmt.Errorf("name is taken: %w", errdefs.ErrAlreadyExists)
	_, err := h.runtime.RunPodSandbox(t.Context(), &runtime.RunPodSandboxRequest{Config: podConfig("x")})
	wantCode(t, err, codes.AlreadyExists)
	if !strings.Contains(err.Error(), "default/x") {
		t.Error(err)
	}
	h.engine.pods["aa1"], h.engine.pods["aa2"] = &sandbox.Status{ID: "aa1"}, &sandbox.Status{ID: "aa2"}
	_, err = h.runtime.PodSandboxStatus(t.Context(), &runtime.PodSandboxStatusRequest{PodSandboxId: "aa"})
	wantCode(t, err, codes.InvalidArgument)
}
