package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/pistis-run/pistis/test/endpoint"
)

// conmonTitle heads the column of conmon, CRI-O's monitor, which is measured without a daemon.
const conmonTitle = "conmon alone"

// conmon runs containers below conmon.
type conmon struct {
	program, runc, dir string
	running            []string // ids of containers
	started            int
}

// newConmon unpacks the image's root file system below dir.
func newConmon(ctx context.Context, program, runc, image, dir string) (*conmon, error) {
	c := &conmon{program: program, runc: runc, dir: dir}
	ref, err := name.ParseReference(image, name.Insecure)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(c.rootfs(), 0o755), os.Mkdir(filepath.Join(dir, "attach"), 0o755)); err != nil {
		return nil, err
	}
	tar := mutate.Extract(img)
	_, err = archive.Apply(ctx, c.rootfs(), tar)
	return c, errors.Join(err, tar.Close())
}

func (c *conmon) rootfs() string              { return filepath.Join(c.dir, "rootfs") }
func (c *conmon) file(id, name string) string { return filepath.Join(c.dir, "bundles", id, name) }
func (c *conmon) oci(args ...string) *exec.Cmd {
	return exec.Command(c.runc, append([]string{"--root", filepath.Join(c.dir, "runc")}, args...)...)
}

// run starts a container as CRI-O does: conmon creates it and stays, runc starts it. Its id is returned.
func (c *conmon) run(ctx context.Context, command ...string) (string, error) {
	c.started++
	id := fmt.Sprintf("conmon%d", c.started)
	if err := os.MkdirAll(c.file(id, "exits"), 0o755); err != nil {
		return "", err
	}
	spec, err := oci.GenerateSpec(namespaces.WithNamespace(ctx, "conmon"), nil, &containers.Container{ID: id},
		oci.WithProcessArgs(command...), oci.WithDefaultPathEnv, oci.WithRootFSPath(c.rootfs()), oci.WithCgroup("/pistis-conmon/"+id))
	if err != nil {
		return "", err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(c.file(id, "config.json"), data, 0o644); err != nil {
		return "", err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer read.Close()
	cmd := exec.Command(c.program, "--api-version", "1", "-c", id, "-u", id, "-n", id, "-r", c.runc, "-b", filepath.Dir(c.file(id, "config.json")),
		"-p", c.file(id, "pid"), "-P", c.file(id, "conmon.pid"), "-l", "k8s-file:"+c.file(id, "log"), "--exit-dir", c.file(id, "exits"),
		"--runtime-arg=--root="+filepath.Join(c.dir, "runc"), "--socket-dir-path", filepath.Join(c.dir, "attach"))
	cmd.Env = append(os.Environ(), "_OCI_SYNCPIPE=3")
	cmd.ExtraFiles = []*os.File{write}
	if err := errors.Join(cmd.Run(), write.Close()); err != nil {
		return "", fmt.Errorf("%s: %w", c.program, err)
	}
	// It says when the container has been created, with its pid, or -1 and why not.
	line, err := bufio.NewReader(read).ReadBytes('\n')
	if err != nil {
		return "", fmt.Errorf("%s says nothing of the container: %w", c.program, err)
	}
	var said struct {
		Data    int    `json:"data"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(line, &said); err != nil {
		return "", err
	}
	if said.Data <= 0 {
		return "", fmt.Errorf("%s: no container: %s", c.program, said.Message)
	}
	c.running = append(c.running, id)
	if out, err := c.oci("start", id).CombinedOutput(); err != nil {
		return "", fmt.Errorf("runc start: %w: %s", err, out)
	}
	return id, nil
}

// memory is the PSS of one of n monitors in MB.
func (c *conmon) memory(ctx context.Context, n int) (float64, error) {
	var pids []int
	for range n {
		id, err := c.run(ctx, "sleep", "1000000")
		if err != nil {
			return 0, err
		}
		b, err := os.ReadFile(c.file(id, "conmon.pid"))
		if err != nil {
			return 0, err
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return 0, err
		}
		pids = append(pids, pid)
	}
	used, err := endpoint.PSS(pids...)
	return used / float64(n), errors.Join(err, c.remove())
}

// throughput is what a container's log takes, in MB/s.
func (c *conmon) throughput(ctx context.Context) (float64, error) {
	id, err := c.run(ctx, writer()...)
	if err != nil {
		return 0, err
	}
	got, err := growth(ctx, c.file(id, "log"))
	return got, errors.Join(err, c.remove(), os.Remove(c.file(id, "log")))
}

// remove ends all containers; their monitors end with them.
func (c *conmon) remove() error {
	var err error
	for _, id := range c.running {
		if out, deleteErr := c.oci("delete", "--force", id).CombinedOutput(); deleteErr != nil {
			err = errors.Join(err, fmt.Errorf("runc delete: %w: %s", deleteErr, out))
		}
	}
	c.running = nil
	return err
}

func (c *conmon) close() error {
	return errors.Join(c.remove(), endpoint.RemoveCgroups("/pistis-conmon"), os.RemoveAll(c.dir))
}
