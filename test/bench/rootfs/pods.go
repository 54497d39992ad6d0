package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/endpoint"
)

// started is a pod with how long its container took.
type started struct {
	endpoint.Pod
	create time.Duration
}

// start runs a pod of the image, without limits.
func (b *bench) start(ctx context.Context, e *endpoint.Endpoint, handler, name string, command ...string) (started, error) {
	p := started{Pod: e.Pod(name)}
	sandbox, err := e.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: handler})
	if err != nil {
		return p, fmt.Errorf("%s: RunPodSandbox: %w", e.Name, err)
	}
	p.Sandbox = sandbox.PodSandboxId
	config := endpoint.Container(b.image, command)
	config.Linux.Resources = nil
	begin := time.Now()
	created, err := e.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.Sandbox, SandboxConfig: p.Config, Config: config})
	if err != nil {
		return p, fmt.Errorf("%s: CreateContainer: %w", e.Name, err)
	}
	p.Container = created.ContainerId
	if _, err := e.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.Container}); err != nil {
		return p, fmt.Errorf("%s: StartContainer: %w", e.Name, err)
	}
	p.create = time.Since(begin)
	return p, nil
}

// work starts a pod for the first time, which may take longer, then one that loads its root file system.
func (b *bench) work(ctx context.Context, e *endpoint.Endpoint, handler, column string) error {
	progress("the load by handler " + handler)
	first, err := b.start(ctx, e, handler, "first-"+handler)
	if err != nil {
		return err
	}
	b.results.add("CreateContainer and StartContainer, the first ones, ms", column, float64(first.create.Milliseconds()))
	if err := e.Remove(ctx, first.Sandbox); err != nil {
		return err
	}
	p, err := b.start(ctx, e, handler, "load-"+handler, "/fsload", "-root", "/")
	if err != nil {
		return err
	}
	b.results.add("CreateContainer and StartContainer, later ones, ms", column, float64(p.create.Milliseconds()))
	for {
		status, err := e.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: p.Container})
		if err != nil {
			return err
		}
		if status.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			break
		}
		time.Sleep(200 * time.Millisecond) // CRI has no call that waits
	}
	log, err := os.ReadFile(p.Log())
	if err := errors.Join(err, e.Remove(ctx, p.Sandbox)); err != nil {
		return err
	}
	return b.results.take(column, string(log))
}

// crowd runs many microVM pods of the image, each of which reads a part of it, and tells what of the host they use.
func (b *bench) crowd(ctx context.Context, e *endpoint.Endpoint) error {
	for i := range b.pods {
		progress(fmt.Sprintf("pod %d of %d of one image", i+1, b.pods))
		p := e.Pod(fmt.Sprint("crowd", i))
		p.Config.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: int64(b.memoryPerPod) << 20}
		sandbox, err := e.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: "vm"})
		if err != nil {
			return err
		}
		config := endpoint.Container(b.image, []string{"/fsload", "-read", "/image"})
		config.Linux.Resources = nil
		created, err := e.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, SandboxConfig: p.Config, Config: config})
		if err != nil {
			return err
		}
		if _, err := e.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
			return err
		}
		for done := false; !done; {
			log, err := os.ReadFile(p.Log())
			if done = strings.Contains(string(log), "has read"); done {
				break
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			if err := errors.Join(err, ctx.Err()); err != nil {
				return err
			}
			time.Sleep(100 * time.Millisecond) // a log is a file
		}
		if i > 0 && i < b.pods-1 {
			continue
		}
		cached, err := inPageCache(filepath.Join(e.Scope.Root, "layers"))
		if err != nil {
			return err
		}
		of := fmt.Sprintf(" with %d pods, MiB", i+1)
		b.results.add("layers in the host's page cache"+of, micro, mib(cached))
		b.results.add("layers on the disk"+of, micro, mib(diskUse(filepath.Join(e.Scope.Root, "layers"))))
		b.results.add("disk for what pods write"+of, micro, mib(diskUse(filepath.Join(e.Scope.Root, "scratch"))))
	}
	return nil
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// diskUse is what a tree occupies; what goes away meanwhile counts as nothing.
func diskUse(root string) (sum int64) {
	_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var st syscall.Stat_t
		if err == nil && syscall.Lstat(path, &st) == nil {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}

// inPageCache is how much of a tree's files the host has in memory.
func inPageCache(root string) (sum int64, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		out, err := exec.Command("fincore", "--bytes", "--noheadings", "--output", "RES", path).Output()
		if err != nil {
			return fmt.Errorf("fincore: %w", err)
		}
		n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		sum += n
		return err
	})
	return sum, err
}

// overlayBelow is where the one overlay is mounted that lies below root.
func overlayBelow(root string) (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], root+"/") && strings.Contains(lines.Text(), " - overlay ") {
			return fields[4], nil
		}
	}
	return "", fmt.Errorf("no overlay is mounted below %s", root)
}
