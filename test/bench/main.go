package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type bench struct {
	runtime.RuntimeServiceClient
	images  runtime.ImageServiceClient
	image   string
	handler string
	logs    string
	pods    []pod
}

type pod struct {
	sandbox, container string
	config             *runtime.PodSandboxConfig
	info               map[string]string
}

func main() {
	socket := flag.String("socket", os.Getenv("PISTIS_SOCKET"), "the daemon's socket")
	image := flag.String("image", "", "an image with a shell")
	handler := flag.String("handler", "vm", "runtime handler")
	pods := flag.Int("pods", 10, "how many pods")
	daemonPID := flag.Int("daemon-pid", 0, "the daemon, for its memory and CPU")
	megabytes := flag.Int("log-megabytes", 20, "how much a container writes for the log's throughput")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *socket, *image, *handler, *pods, *daemonPID, *megabytes); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, socket, image, handler string, count, daemonPID, megabytes int) (err error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	logs, err := os.MkdirTemp("", "pistis-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(logs)
	b := &bench{RuntimeServiceClient: runtime.NewRuntimeServiceClient(conn), images: runtime.NewImageServiceClient(conn), image: image, handler: handler, logs: logs}
	if _, err := b.images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}}); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		if stopErr := b.removeAll(ctx); err == nil {
			err = stopErr
		}
	}()
	for _, measure := range []func() error{
		func() error { return b.starts(ctx, count) },
		func() error { return b.execs(ctx, 10) },
		func() error { return b.throughput(ctx, megabytes) },
		func() error { return b.memory(daemonPID) },
		func() error { return b.idle(ctx, daemonPID) },
		func() error { return b.stops(ctx) },
	} {
		if err := measure(); err != nil {
			return err
		}
	}
	return nil
}

// row prints one line of the table: a name and the minimum, median and maximum of what was seen.
func row(name, unit string, values []float64) {
	if len(values) == 0 {
		return
	}
	slices.Sort(values)
	fmt.Printf("%-34s %10.1f %10.1f %10.1f %s\n", name, values[0], values[len(values)/2], values[len(values)-1], unit)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// starts runs pods one after the other and prints every phase of their start.
func (b *bench) starts(ctx context.Context, count int) error {
	steps := map[string][]float64{}
	for i := range count {
		if err := b.startPod(ctx, i, steps); err != nil {
			return err
		}
	}
	fmt.Printf("start of %d pods, handler %s\n%-34s %10s %10s %10s\n", count, b.handler, "", "min", "median", "max")
	for _, name := range []string{"RunPodSandbox", "CreateContainer", "StartContainer", "first byte of output", "in all"} {
		row(name, "ms", steps[name])
		delete(steps, name)
	}
	fmt.Println("of which, as the shim tells")
	for _, name := range slices.Sorted(keys(steps)) {
		row("  "+name, "ms", steps[name])
	}
	return nil
}

func (b *bench) startPod(ctx context.Context, i int, steps map[string][]float64) error {
	name := fmt.Sprintf("bench-%d-%d", os.Getpid(), i)
	config := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: b.logs, Linux: &runtime.LinuxPodSandboxConfig{},
	}
	begin := time.Now()
	last := begin
	note := func(step string) {
		now := time.Now()
		steps[step] = append(steps[step], ms(now.Sub(last)))
		last = now
	}
	sandbox, err := b.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: b.handler})
	if err != nil {
		return err
	}
	note("RunPodSandbox")
	p := pod{sandbox: sandbox.PodSandboxId, config: config}
	b.pods = append(b.pods, p)
	container, err := b.create(ctx, p, "main", "echo ready; trap 'exit 0' TERM; while :; do sleep 1 & wait; done")
	if err != nil {
		return err
	}
	note("CreateContainer")
	b.pods[len(b.pods)-1].container = container
	if _, err := b.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: container}); err != nil {
		return err
	}
	note("StartContainer")
	if err := b.awaitLog(ctx, name+"-main.log", 1); err != nil {
		return err
	}
	note("first byte of output")
	steps["in all"] = append(steps["in all"], ms(last.Sub(begin)))

	status, err := b.PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.sandbox, Verbose: true})
	if err != nil {
		return err
	}
	b.pods[len(b.pods)-1].info = status.Info
	for name, d := range phases(status.Info) {
		steps[name] = append(steps[name], ms(d))
	}
	return nil
}

func (b *bench) create(ctx context.Context, p pod, name, script string) (string, error) {
	resp, err := b.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.sandbox, SandboxConfig: p.config,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: b.image},
			Command: []string{"sh", "-c", script}, LogPath: p.config.Metadata.Name + "-" + name + ".log", Linux: &runtime.LinuxContainerConfig{},
		},
	})
	if err != nil {
		return "", err
	}
	return resp.ContainerId, nil
}

func (b *bench) execs(ctx context.Context, count int) error {
	var times []float64
	for range count {
		begin := time.Now()
		if _, err := b.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: b.pods[0].container, Cmd: []string{"true"}, Timeout: 60}); err != nil {
			return err
		}
		times = append(times, ms(time.Since(begin)))
	}
	fmt.Println()
	row("ExecSync of true", "ms", times)
	return nil
}

func (b *bench) stops(ctx context.Context) error {
	var times []float64
	for len(b.pods) > 0 {
		begin := time.Now()
		if err := b.remove(ctx, b.pods[0]); err != nil {
			return err
		}
		times = append(times, ms(time.Since(begin)))
		b.pods = b.pods[1:]
	}
	row("stop and remove of a pod", "ms", times)
	return nil
}

func (b *bench) removeAll(ctx context.Context) error {
	for _, p := range b.pods {
		if err := b.remove(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) remove(ctx context.Context, p pod) error {
	if p.container != "" {
		if _, err := b.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: p.container, Timeout: 10}); err != nil {
			return err
		}
	}
	if _, err := b.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return err
	}
	_, err := b.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
	return err
}
