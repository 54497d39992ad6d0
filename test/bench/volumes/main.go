// Command volumes measures a volume of a VM pod against the same directory on the host and against virtio-fs, in one run:
// the same load (test/bench/fsload) with the same fio, guests of the same kernel, processors and memory.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/bench/virtiofs"
)

// marker is fsload's.
const marker = "fsload-results "

type options struct {
	socket, image, load, dir, fio string
	peer                          virtiofs.Guest
	loadArgs                      []string
	subjects, handler             string
	rounds                        int
}

func main() {
	var o options
	flag.StringVar(&o.socket, "socket", os.Getenv("PISTIS_SOCKET"), "the daemon's socket")
	flag.StringVar(&o.image, "image", "", "an image with fio")
	flag.StringVar(&o.load, "load", "", "the program fsload")
	flag.StringVar(&o.dir, "dir", "", "a directory of the file system to measure")
	o.peer.Flags()
	flag.StringVar(&o.fio, "fio", "fio", "the host's fio")
	flag.StringVar(&o.subjects, "subjects", "host,virtio-fs,pistis", "what is measured")
	flag.StringVar(&o.handler, "handler", "vm", "the runtime handler of the pods")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each is measured, by turns")
	flag.Parse()
	o.loadArgs = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "volumes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	work, err := os.MkdirTemp(o.dir, "volumes-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	results := map[string]map[string][]float64{"host": {}, "virtio-fs": {}, "pistis": {}}
	for round := range o.rounds {
		for _, subject := range []struct {
			name    string
			measure func(ctx context.Context, o options, dir string) (string, error)
		}{{"host", onHost}, {"virtio-fs", onVirtioFS}, {"pistis", onPistis}} {
			if !slices.Contains(strings.Split(o.subjects, ","), subject.name) {
				continue
			}
			dir := filepath.Join(work, fmt.Sprint(subject.name, round))
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			out, err := subject.measure(ctx, o, dir)
			if err != nil {
				return fmt.Errorf("%s: %w", subject.name, err)
			}
			_, line, found := strings.Cut(out, marker)
			line, _, _ = strings.Cut(line, "\n")
			var values map[string]float64
			if err := json.Unmarshal([]byte(line), &values); !found || err != nil {
				return fmt.Errorf("%s: no results: %w: …%s", subject.name, err, out[max(0, len(out)-2000):])
			}
			for name, v := range values {
				results[subject.name][name] = append(results[subject.name][name], v)
			}
		}
	}
	report(results)
	return nil
}

// report prints medians, and the median of the rounds' ratios: the machine may do other things in one round and not in another.
func report(results map[string]map[string][]float64) {
	fmt.Printf("%-32s %10s %10s %10s %16s\n", "", "host", "virtio-fs", "pistis", "pistis/virtio-fs")
	names := map[string]bool{}
	for _, of := range results {
		for name := range of {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		peer, ours := results["virtio-fs"][name], results["pistis"][name]
		var ratios []float64
		for i := range min(len(ours), len(peer)) {
			ratios = append(ratios, ours[i]/peer[i])
		}
		fmt.Printf("%-32s %10.1f %10.1f %10.1f %16.2f\n", name, median(results["host"][name]), median(peer), median(ours), median(ratios))
	}
}

// median is not a number where nothing was measured.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

func onHost(ctx context.Context, o options, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, o.load, append([]string{"-dir", dir, "-fio", o.fio}, o.loadArgs...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}

// onPistis runs the load in a VM pod, on a hostPath volume.
func onPistis(ctx context.Context, o options, dir string) (_ string, err error) {
	conn, err := grpc.NewClient("unix://"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	cri, images := runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)
	image := &runtime.ImageSpec{Image: o.image}
	if _, err := images.PullImage(ctx, &runtime.PullImageRequest{Image: image}); err != nil {
		return "", err
	}
	pod := &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: "volumes", Namespace: "bench", Uid: "volumes"}, LogDirectory: filepath.Dir(dir), Linux: &runtime.LinuxPodSandboxConfig{},
	}
	sandbox, err := cri.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: pod, RuntimeHandler: o.handler})
	if err != nil {
		return "", err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		_, stopErr := cri.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		_, removeErr := cri.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId})
		err = errors.Join(err, stopErr, removeErr)
	}()
	container, err := cri.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: sandbox.PodSandboxId, SandboxConfig: pod,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: "load"}, Image: image, Linux: &runtime.LinuxContainerConfig{}, LogPath: "load.log",
			Command: append([]string{"/load/" + filepath.Base(o.load), "-dir", "/work", "-fio", "/usr/bin/fio"}, o.loadArgs...),
			Mounts: []*runtime.Mount{
				{HostPath: dir, ContainerPath: "/work"}, {HostPath: filepath.Dir(o.load), ContainerPath: "/load", Readonly: true},
			},
		},
	})
	if err != nil {
		return "", err
	}
	if _, err := cri.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: container.ContainerId}); err != nil {
		return "", err
	}
	for {
		status, err := cri.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: container.ContainerId})
		if err != nil {
			return "", err
		}
		if status.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			break
		}
		time.Sleep(time.Second) // CRI has no call that waits
	}
	log, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "load.log"))
	return string(log), err
}

// onVirtioFS runs it in a guest of the same kernel whose root is this host's, over virtio-fs.
func onVirtioFS(ctx context.Context, o options, dir string) (string, error) {
	return o.peer.Run(ctx, filepath.Dir(dir), o.load, append([]string{"-dir", dir, "-fio", "/usr/bin/fio"}, o.loadArgs...)...)
}
