package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	pistisv1 "github.com/pistis-run/pistis/api/pistis/v1"
	"github.com/pistis-run/pistis/internal/doctor"
)

// daemon answers what the tests ask; what it is told to do it only notes.
type daemon struct {
	runtime.UnimplementedRuntimeServiceServer
	runtime.UnimplementedImageServiceServer
	pistisv1.UnimplementedPistisServer
	pods       []*runtime.PodSandbox
	containers []*runtime.Container
	images     []*runtime.Image
	fail       error
	keep       string // an image that cannot be removed

	mu    sync.Mutex
	calls []string
	asked int
}

func (d *daemon) note(call string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, call)
	return d.fail
}

func (d *daemon) Version(context.Context, *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	return &runtime.VersionResponse{RuntimeApiVersion: "v1"}, nil
}

func (d *daemon) ImageFsInfo(context.Context, *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	return &runtime.ImageFsInfoResponse{}, nil
}

func (d *daemon) ListPodSandbox(context.Context, *runtime.ListPodSandboxRequest) (*runtime.ListPodSandboxResponse, error) {
	return &runtime.ListPodSandboxResponse{Items: d.pods}, d.fail
}

func (d *daemon) ListContainers(_ context.Context, r *runtime.ListContainersRequest) (*runtime.ListContainersResponse, error) {
	resp := &runtime.ListContainersResponse{}
	for _, c := range d.containers {
		if pod := r.GetFilter().GetPodSandboxId(); pod == "" || pod == c.PodSandboxId {
			resp.Containers = append(resp.Containers, c)
		}
	}
	return resp, d.fail
}

func (d *daemon) ListContainerStats(context.Context, *runtime.ListContainerStatsRequest) (*runtime.ListContainerStatsResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	cpu := &runtime.CpuUsage{UsageCoreNanoSeconds: &runtime.UInt64Value{Value: 1e9}}
	if d.asked > 1 {
		cpu.UsageNanoCores = &runtime.UInt64Value{Value: 5e8}
	}
	return &runtime.ListContainerStatsResponse{Stats: []*runtime.ContainerStats{
		{Attributes: &runtime.ContainerAttributes{Id: "c1", Metadata: &runtime.ContainerMetadata{Name: "c"}}, Cpu: cpu},
	}}, nil
}

func (d *daemon) PodSandboxStatus(_ context.Context, r *runtime.PodSandboxStatusRequest) (*runtime.PodSandboxStatusResponse, error) {
	return &runtime.PodSandboxStatusResponse{Status: &runtime.PodSandboxStatus{
		Id: r.PodSandboxId, CreatedAt: 1, Metadata: &runtime.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Network: &runtime.PodSandboxNetworkStatus{},
	}}, nil
}

func (d *daemon) StopPodSandbox(_ context.Context, r *runtime.StopPodSandboxRequest) (*runtime.StopPodSandboxResponse, error) {
	return &runtime.StopPodSandboxResponse{}, d.note("stop pod " + r.PodSandboxId)
}

func (d *daemon) RemovePodSandbox(_ context.Context, r *runtime.RemovePodSandboxRequest) (*runtime.RemovePodSandboxResponse, error) {
	return &runtime.RemovePodSandboxResponse{}, d.note("remove pod " + r.PodSandboxId)
}

func (d *daemon) StopContainer(_ context.Context, r *runtime.StopContainerRequest) (*runtime.StopContainerResponse, error) {
	return &runtime.StopContainerResponse{}, d.note("stop container " + r.ContainerId)
}

func (d *daemon) RemoveContainer(_ context.Context, r *runtime.RemoveContainerRequest) (*runtime.RemoveContainerResponse, error) {
	return &runtime.RemoveContainerResponse{}, d.note("remove container " + r.ContainerId)
}

// ContainerStatus: every container has the image "volume" as a volume.
func (d *daemon) ContainerStatus(_ context.Context, r *runtime.ContainerStatusRequest) (*runtime.ContainerStatusResponse, error) {
	return &runtime.ContainerStatusResponse{Status: &runtime.ContainerStatus{
		Id: r.ContainerId, Metadata: &runtime.ContainerMetadata{Name: "c"}, CreatedAt: 1, Image: &runtime.ImageSpec{Image: "x"}, ImageRef: "x",
		Mounts: []*runtime.Mount{{ContainerPath: "/h", HostPath: "/h"}, {ContainerPath: "/v", Image: &runtime.ImageSpec{Image: "volume"}}},
	}}, nil
}

func (d *daemon) ListImages(context.Context, *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	return &runtime.ListImagesResponse{Images: d.images}, nil
}

func (d *daemon) ImageStatus(_ context.Context, r *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	for _, i := range d.images {
		if slices.Contains(i.RepoTags, r.Image.Image) {
			return &runtime.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtime.ImageStatusResponse{}, nil
}

func (d *daemon) RemoveImage(_ context.Context, r *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	if d.keep != "" && r.Image.Image == d.keep {
		return nil, status.Error(codes.Internal, "it stays")
	}
	return &runtime.RemoveImageResponse{}, d.note("remove image " + r.Image.Image)
}

func (d *daemon) Pull(r *pistisv1.PullRequest, stream grpc.ServerStreamingServer[pistisv1.PullProgress]) error {
	return errors.Join(stream.Send(&pistisv1.PullProgress{Status: "downloading"}), stream.Send(&pistisv1.PullProgress{Id: "sha256:" + r.Image}))
}

// served is a daemon, or one that can do more.
type served interface {
	runtime.RuntimeServiceServer
	runtime.ImageServiceServer
	pistisv1.PistisServer
}

// start serves d and returns what runs a command line against it.
func start(t *testing.T, d served) func(args ...string) (out string, err error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtime.RegisterRuntimeServiceServer(server, d)
	runtime.RegisterImageServiceServer(server, d)
	pistisv1.RegisterPistisServer(server, d)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(listener) })
	t.Cleanup(func() { server.Stop(); served.Wait() })
	return func(args ...string) (string, error) {
		var out bytes.Buffer
		a := &app{out: &out, err: io.Discard}
		cmd := a.command()
		cmd.SetOut(&out)
		cmd.SetArgs(append([]string{"--socket", socket}, args...))
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
}

func pod(id, name string, ready bool) *runtime.PodSandbox {
	state := runtime.PodSandboxState_SANDBOX_NOTREADY
	if ready {
		state = runtime.PodSandboxState_SANDBOX_READY
	}
	return &runtime.PodSandbox{Id: id, Metadata: &runtime.PodSandboxMetadata{Name: name}, State: state}
}

func TestWhatANameMeans(t *testing.T) {
	d := &daemon{
		pods: []*runtime.PodSandbox{
			pod("aa1", "web", false), pod("aa2", "web", true), // two attempts of one
			pod("bb1", "db", true), pod("bb2", "db", true), // in two namespaces
			pod("cc1", "old", false),
		},
		containers: []*runtime.Container{{Id: "ff1", PodSandboxId: "aa2", Metadata: &runtime.ContainerMetadata{Name: "c"}}},
	}
	run := start(t, d)
	for _, tt := range []struct {
		args  []string
		calls []string
		err   string
	}{
		{[]string{"stop", "web"}, []string{"stop container ff1", "stop pod aa2"}, ""},
		{[]string{"stop", "ff"}, []string{"stop container ff1"}, ""},
		{[]string{"stop", "nothing"}, nil, "no pod or container"},
		{[]string{"stop", "db"}, nil, "2 pods match"},
		{[]string{"rm", "-f", "db"}, nil, "2 pods match"},
		{[]string{"rm", "-f", "bb"}, nil, "2 pods match"},
		{[]string{"rm", "web"}, nil, "stop it first"},
		{[]string{"rm", "cc"}, []string{"stop pod cc1", "remove pod cc1"}, ""},
		{[]string{"rm", "aa1"}, []string{"stop pod aa1", "remove pod aa1"}, ""},
		{[]string{"inspect", "db"}, nil, "2 pods match"},
	} {
		d.calls = nil
		_, err := run(tt.args...)
		if !slices.Equal(d.calls, tt.calls) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%v: calls %v, %v", tt.args, d.calls, err)
		}
	}
	d.pods, d.calls = d.pods[4:], nil
	if _, err := run("rm", "-f", ""); err == nil || len(d.calls) > 0 {
		t.Errorf("an empty name removed the only pod: %v", d.calls)
	}
	d.fail = status.Error(codes.Unavailable, "the daemon is going down")
	if _, err := run("stop", "old"); err == nil || !strings.Contains(err.Error(), "going down") {
		t.Errorf("the daemon's error was hidden: %v", err)
	}
}

func TestStatsNeedTwoSamples(t *testing.T) {
	run := start(t, &daemon{})
	out, err := run("stats")
	if err != nil || !strings.Contains(out, "0.50") {
		t.Errorf("%v\n%s", err, out)
	}
	if cores(&runtime.CpuUsage{}) != "-" {
		t.Error("a rate that is not known is not 0")
	}
}

func TestJSON(t *testing.T) {
	run := start(t, &daemon{pods: []*runtime.PodSandbox{pod("aa1", "web", true)}})
	for _, args := range [][]string{{"pods"}, {"ps", "-a"}, {"stats"}, {"pull", "a"}, {"inspect", "web"}} {
		out, err := run(append(args, "-o", "json")...)
		if err != nil || !json.Valid([]byte(out)) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	for _, args := range [][]string{{"stop", "web"}, {"rm", "-f", "web"}} {
		if out, err := run(append(args, "-o", "json")...); err != nil || strings.Join(strings.Fields(out), "") != `["web"]` {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	if out, err := run("stop", "web", "nothing", "-o", "json"); err == nil || strings.Join(strings.Fields(out), "") != `["web"]` {
		t.Errorf("what was done before the failure: %v\n%s", err, out)
	}
	for _, args := range [][]string{{"exec", "web", "ls"}, {"attach", "web"}, {"run", "image"}} {
		if _, err := run(append([]string{"-o", "json"}, args...)...); err == nil || !strings.Contains(err.Error(), "as it is") {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := run("pods", "-o", "yaml"); err == nil || !strings.Contains(err.Error(), "json") {
		t.Error(err)
	}
}

func TestCompletion(t *testing.T) {
	run := start(t, &daemon{})
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, err := run("completion", shell); err != nil || !strings.Contains(out, "pistis") {
			t.Errorf("%s: %v", shell, err)
		}
	}
}

func TestNamesAreOffered(t *testing.T) {
	run := start(t, &daemon{
		pods:       []*runtime.PodSandbox{pod("aa1", "web", true)},
		containers: []*runtime.Container{{Id: "ff1", PodSandboxId: "aa1", Metadata: &runtime.ContainerMetadata{Name: "server"}}},
	})
	for _, test := range []struct {
		args       []string
		want, lack string
	}{
		{[]string{"stop", ""}, "web", "x"}, {[]string{"stop", "a", ""}, "server", "x"},
		{[]string{"exec", ""}, "server", "web"}, {[]string{"exec", "server", ""}, ":", "server"},
	} {
		out, err := run(append([]string{"__complete"}, test.args...)...)
		if err != nil || !strings.Contains(out, test.want) || strings.Contains(out, test.lack) {
			t.Errorf("%v: %v\n%s", test.args, err, out)
		}
	}
}

func TestLogLinesAsJSON(t *testing.T) {
	var out bytes.Buffer
	lines := &jsonLines{to: &out, stream: "stdout"}
	long := strings.Repeat("x", maxJSONLine)
	for _, piece := range []string{"T1 a b\nT2", " c\n\"\n", "T3 " + long, "y\n", "T4 end"} {
		if n, err := lines.Write([]byte(piece)); err != nil || n != len(piece) {
			t.Fatal(n, err)
		}
	}
	if err := lines.close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for dec := json.NewDecoder(&out); dec.More(); {
		var line map[string]string
		if err := dec.Decode(&line); err != nil {
			t.Fatal(err)
		}
		got = append(got, line["time"]+"|"+strings.ReplaceAll(line["log"], long, "LONG"))
	}
	if want := []string{"T1|a b", "T2|c", "\"|", "T3|LONG", "T3|y", "T4|end"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestDoctorReport(t *testing.T) {
	bad := doctor.Check{Name: "qemu", Level: doctor.LevelFail, Detail: "not found", Advice: "install it"}
	slow := doctor.Check{Name: "kvm", OK: true, Level: doctor.LevelWarn, Detail: "there is none"}
	var out bytes.Buffer
	a := &app{out: &out}
	if err := a.report([]doctor.Check{slow}); err != nil {
		t.Error(err)
	}
	if err := a.report([]doctor.Check{slow, bad}); err == nil || !strings.Contains(out.String(), "install it") {
		t.Errorf("%v\n%s", err, out.String())
	}
	out.Reset()
	a.output = "json"
	var got []doctor.Check
	if err := a.report([]doctor.Check{bad}); err == nil || json.Unmarshal(out.Bytes(), &got) != nil || len(got) != 1 || got[0] != bad {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestParse(t *testing.T) {
	ports, err := parsePorts([]string{"8080:80", "127.0.0.1:53:5353/udp", "[::1]:1:2"})
	if err != nil || len(ports) != 3 || ports[1].HostIp != "127.0.0.1" || ports[1].Protocol != runtime.Protocol_UDP || ports[2].HostIp != "::1" {
		t.Errorf("%v, %v", ports, err)
	}
	for _, bad := range []string{"80", "x:80", "0:80", "70000:80", "1:2/icmp", "host:1:2"} {
		if _, err := parsePorts([]string{bad}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if r, err := (runOptions{memory: "64Mi", cpus: "0.5"}).resources(); err != nil || r.MemoryLimitInBytes != 64<<20 || r.CpuQuota != 50000 {
		t.Errorf("%v, %v", r, err)
	}
	for _, bad := range []runOptions{{memory: "much"}, {memory: "-1"}, {cpus: "NaN"}, {cpus: "0"}} {
		if _, err := bad.resources(); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1 << 20: "1.0 MiB", 1 << 60: "1024.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}
