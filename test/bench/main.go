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

	"github.com/pistis-run/pistis/internal/hypervisor"
)

type bench struct {
	runtime.RuntimeServiceClient
	images  runtime.ImageServiceClient
	image   string
	handler string
	logs    string
	pods    []pod
	guest   guest
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
	only := flag.String("only", "", "memory: start pods, and measure nothing but their memory")
	repeat := flag.Int("repeat", 3, "how often throughput and boot are measured")
	var g guest
	flag.StringVar(&g.kernel, "kernel", "", "the guest's kernel, to compare boots; empty leaves that out")
	flag.StringVar(&g.initrd, "initrd", "", "the guest's initrd")
	flag.StringVar(&g.emptyInit, "empty-init", "", "the program emptyinit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if *only != "" && *only != "memory" {
		fmt.Fprintf(os.Stderr, "bench: -only %q is not memory\n", *only)
		os.Exit(2)
	}
	if err := run(ctx, *socket, *image, *handler, *pods, *daemonPID, *megabytes, *repeat, *only == "memory", g); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, socket, image, handler string, count, daemonPID, megabytes, repeat int, memoryOnly bool, g guest) (err error) {
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
	b := &bench{RuntimeServiceClient: runtime.NewRuntimeServiceClient(conn), images: runtime.NewImageServiceClient(conn), image: image, handler: handler, logs: logs, guest: g}
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
	if err := b.starts(ctx, count); err != nil {
		return err
	}
	if memoryOnly {
		return b.memory(daemonPID)
	}
	for _, measure := range []func() error{
		func() error { return b.execs(ctx, 10) },
		func() error { return b.throughput(ctx, megabytes, repeat) },
		func() error { return b.memory(daemonPID) },
		func() error { return b.idle(ctx, daemonPID) },
		func() error { return b.stops(ctx) },
		func() error { return b.boots(ctx, repeat) },
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
	digits := 1
	if unit == "" {
		digits = 2 // a ratio
	}
	fmt.Printf("%-34s %10.*f %10.*f %10.*f %s\n", name, digits, values[0], digits, values[len(values)/2], digits, values[len(values)-1], unit)
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
	fmt.Println("RunPodSandbox in steps; what is not between the VMM's start and the last step counts as before it")
	for _, name := range append([]string{beforeVMM}, phaseOrder...) {
		row("  "+name, "ms", steps[name])
	}
	return nil
}

// beforeVMM is everything of RunPodSandbox that is not VMM or guest: the daemon, the pod's network, the shim's launch.
const beforeVMM = "until the VMM's start"

// phaseOrder are the shim's phases that the VMM or the guest takes part in.
var phaseOrder = []string{"vmm", "kernel+agent", "configure"}

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
	ran := last.Sub(begin)
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
	b.guest.accel = hypervisor.Acceleration(status.Info["acceleration"])
	told := phases(status.Info)
	before := ran
	for _, name := range phaseOrder {
		before -= told[name]
		steps[name] = append(steps[name], ms(told[name]))
	}
	steps[beforeVMM] = append(steps[beforeVMM], ms(before))
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

// stops ends the pods one after the other and prints every step.
func (b *bench) stops(ctx context.Context) error {
	steps := map[string][]float64{}
	for len(b.pods) > 0 {
		err := b.remove(ctx, b.pods[0], func(step string, d time.Duration) { steps[step] = append(steps[step], ms(d)) })
		if err != nil {
			return err
		}
		b.pods = b.pods[1:]
	}
	for _, step := range []string{"StopContainer", "StopPodSandbox", "RemovePodSandbox"} {
		row(step, "ms", steps[step])
	}
	return nil
}

func (b *bench) removeAll(ctx context.Context) error {
	for _, p := range b.pods {
		if err := b.remove(ctx, p, func(string, time.Duration) {}); err != nil {
			return err
		}
	}
	return nil
}

// remove ends a pod and tells note how long each step took.
func (b *bench) remove(ctx context.Context, p pod, note func(string, time.Duration)) error {
	steps := []struct {
		name string
		do   func() error
	}{
		{"StopContainer", func() error {
			if p.container == "" {
				return nil
			}
			_, err := b.StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: p.container, Timeout: 10})
			return err
		}},
		{"StopPodSandbox", func() error {
			_, err := b.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.sandbox})
			return err
		}},
		{"RemovePodSandbox", func() error {
			_, err := b.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.sandbox})
			return err
		}},
	}
	for _, step := range steps {
		begin := time.Now()
		if err := step.do(); err != nil {
			return err
		}
		note(step.name, time.Since(begin))
	}
	return nil
}
