// Command volumes measures a volume of a VM pod against the same directory on the host and against virtio-fs, in one run:
// the same load (test/bench/fsload) with the same fio, guests of the same kernel, processors and memory.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
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
)

// marker is fsload's.
const marker = "fsload-results "

type options struct {
	socket, image, load, dir            string
	kernel, initrd, virtiofs, virtiofsd string
	fio                                 string
	loadArgs                            []string
	machine, cpu, params                string
	rounds                              int
}

func main() {
	var o options
	flag.StringVar(&o.socket, "socket", os.Getenv("PISTIS_SOCKET"), "the daemon's socket")
	flag.StringVar(&o.image, "image", "", "an image with fio")
	flag.StringVar(&o.load, "load", "", "the program fsload")
	flag.StringVar(&o.dir, "dir", "", "a directory of the file system to measure")
	flag.StringVar(&o.kernel, "kernel", "", "the guest's kernel")
	flag.StringVar(&o.initrd, "initrd", "", "the guest's initrd")
	flag.StringVar(&o.virtiofs, "virtiofs", "", "the kernel's module virtiofs")
	flag.StringVar(&o.virtiofsd, "virtiofsd", "/usr/lib/qemu/virtiofsd", "virtio-fs's server")
	flag.StringVar(&o.fio, "fio", "fio", "the host's fio")
	flag.StringVar(&o.machine, "machine", "q35,accel=tcg", "QEMU's machine for virtio-fs")
	flag.StringVar(&o.cpu, "cpu", "EPYC,-cx16,-svm", "QEMU's processor for virtio-fs")
	flag.StringVar(&o.params, "params", "no_timer_check tsc=reliable mitigations=off noreplace-smp", "kernel parameters")
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
				return fmt.Errorf("%s: no results: %w: %.2000s", subject.name, err, out)
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
	for _, name := range slices.Sorted(maps.Keys(results["host"])) {
		peer, ours := results["virtio-fs"][name], results["pistis"][name]
		var ratios []float64
		for i := range ours {
			ratios = append(ratios, ours[i]/peer[i])
		}
		fmt.Printf("%-32s %10.1f %10.1f %10.1f %16.2f\n", name, median(results["host"][name]), median(peer), median(ours), median(ratios))
	}
}

func median(values []float64) float64 {
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
	sandbox, err := cri.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: pod, RuntimeHandler: "vm"})
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
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	initrd := filepath.Join(filepath.Dir(dir), "initrd")
	if err := peerInitrd(initrd, o); err != nil {
		return "", err
	}
	socket := filepath.Join(filepath.Dir(dir), "virtiofs.sock")
	server := exec.CommandContext(ctx, o.virtiofsd, "--socket-path="+socket, "-o", "source=/", "-o", "sandbox=chroot")
	var said bytes.Buffer
	server.Stderr = &said
	if err := server.Start(); err != nil {
		return "", err
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	for _, err := os.Stat(socket); err != nil; _, err = os.Stat(socket) {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		time.Sleep(20 * time.Millisecond) // it makes the socket when it is ready
	}
	command := strings.Join(append([]string{o.load, "-dir", dir, "-fio", "/usr/bin/fio"}, o.loadArgs...), " ")
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", o.machine, "-cpu", o.cpu,
		"-smp", "1", "-m", "512M", "-object", "memory-backend-memfd,id=memory,share=on,size=512M", "-numa", "node,memdev=memory",
		"-kernel", o.kernel, "-initrd", initrd, "-append", "rdinit=/fsload console=ttyS0 quiet panic=-1 reboot=t "+o.params+" -- "+command, "-serial", "stdio",
		"-chardev", "socket,id=root,path="+socket, "-device", "vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024", "-device", "virtio-rng-pci")
	out, err := qemu.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("QEMU: %w: %s; virtiofsd: %s", err, out, said.Bytes())
	}
	return strings.ReplaceAll(string(out), "\r", ""), nil
}

// peerInitrd is the guest's initrd with another first process and one module more, in an archive before it: the kernel
// unpacks one after the other.
func peerInitrd(path string, o options) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	for _, file := range []struct{ name, from string }{{"fsload", o.load}, {"virtiofs.ko", o.virtiofs}, {"TRAILER!!!", ""}} {
		var data []byte
		if file.from != "" {
			if data, err = os.ReadFile(file.from); err != nil {
				return err
			}
		}
		const mode = 0o100755
		// cpio's "newc" format, as the kernel's initramfs takes it.
		fmt.Fprintf(w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(file.name)+1, 0)
		io.WriteString(w, file.name+"\x00")
		w.Write(make([]byte, -(110+len(file.name)+1)&3))
		w.Write(data)
		w.Write(make([]byte, -len(data)&3))
	}
	base, err := os.ReadFile(o.initrd)
	if err != nil {
		return err
	}
	w.Write(base)
	return w.Flush()
}
