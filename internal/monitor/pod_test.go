package monitor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/monitor/server"
	"github.com/pistis-run/pistis/internal/task"
)

const (
	// monitorName makes this test binary a monitor, when it is run by that name.
	monitorName = "pistis-monitor"
	// daemonVariable makes it a daemon that does what the value, an order in JSON, says, and then waits to be killed.
	daemonVariable = "PISTIS_TEST_DAEMON"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == monitorName {
		os.Exit(server.Main(os.Args[1:]))
	}
	if text := os.Getenv(daemonVariable); text != "" {
		if err := daemon(text); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// order is a monitor to launch with one container in it.
type order struct {
	Config  monitor.Config
	Request monitor.CreateRequest
}

func daemon(text string) error {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	c, err := monitor.Launch(context.Background(), o.Config)
	if err != nil {
		return err
	}
	if err := c.Create(context.Background(), o.Request); err != nil {
		return err
	}
	if _, err := c.Start(context.Background(), task.ID{Container: o.Request.ID}); err != nil {
		return err
	}
	fmt.Println("started")
	return unix.Pause()
}

// buildProgram builds the containers' program once.
var buildProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pistis-monitor-test-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "prog"), "./testdata/prog")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(dir, "prog"), nil
})

// pod is a monitor with a real runtime.
type pod struct {
	*monitor.Client
	t       *testing.T
	config  monitor.Config
	work    string
	group   string
	version string // of the spec
}

// hideHybrid runs crun where it sees no unified hierarchy beside those of cgroup v1, with controllers in which it refuses
// to work.
const hideHybrid = `#!/bin/sh
mountpoint -q /sys/fs/cgroup/unified || exec crun "$@"
exec unshare --mount sh -c 'umount /sys/fs/cgroup/unified && exec crun "$@"' crun "$@"
`

// runtime is one that tests run with, and the version of the specification that it takes.
type runtime struct{ path, version string }

// runtimes are runc, and crun where it is installed.
func runtimes(t *testing.T) map[string]runtime {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, not tested: containers need root")
	}
	found := map[string]runtime{}
	runc := filepath.Join(os.Getenv("PISTIS_BIN"), "guest", "runc")
	if _, err := os.Stat(runc); err != nil {
		runc = "runc"
	}
	if path, err := exec.LookPath(runc); err == nil {
		found["runc"] = runtime{path, specs.Version}
	} else {
		t.Log("SKIPPED, not tested: no runc; `make guest` builds it, PISTIS_BIN says where it is")
	}
	if _, err := exec.LookPath("crun"); err == nil {
		path := filepath.Join(t.TempDir(), "crun")
		if err := os.WriteFile(path, []byte(hideHybrid), 0o755); err != nil {
			t.Fatal(err)
		}
		found["crun"] = runtime{path, "1.0.2"} // Debian's knows no newer one
	} else {
		t.Log("SKIPPED, not tested: no crun; Debian's package of that name has it")
	}
	if len(found) == 0 {
		t.Skip("SKIPPED, not tested: there is no runtime")
	}
	return found
}

// launch starts a monitor, and checks at the end of the test that nothing is left of it.
func launch(t *testing.T, runtime runtime) *pod {
	t.Helper()
	p := newPod(t, runtime)
	var err error
	if p.Client, err = monitor.Launch(t.Context(), p.config); err != nil {
		t.Fatal(err)
	}
	return p
}

// newPod is a pod whose monitor is still to be launched.
func newPod(t *testing.T, runtime runtime) *pod {
	t.Helper()
	work := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(work, monitorName)
	if err := os.Symlink(self, binary); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("pistis-monitor-test-%d/%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	p := &pod{t: t, work: work, group: "/" + name, version: runtime.version, config: monitor.Config{
		Binary: binary, Dir: filepath.Join(work, "b"), Runtime: runtime.path, RuntimeArgs: []string{"--root", filepath.Join(work, "state")},
		Cgroup: name + "/monitor",
	}}
	t.Cleanup(func() {
		if p.Client != nil {
			p.Close()
		}
		log, _ := os.ReadFile(filepath.Join(p.config.Dir, "shim.log"))
		for _, bad := range []string{"DATA RACE", "panic:", "fatal error:"} {
			if bytes.Contains(log, []byte(bad)) {
				t.Errorf("the monitor has failed")
			}
		}
		if t.Failed() {
			t.Logf("the monitor's log: %s", log)
		}
		for range 2 {
			if err := monitor.Cleanup(context.Background(), p.config.Dir); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
		p.checkLeft()
	})
	return p
}

// checkLeft wants nothing left but what the test itself made.
func (p *pod) checkLeft() {
	p.t.Helper()
	for _, path := range []string{p.config.Dir} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			p.t.Errorf("left: %s", path)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(p.work, "state")); len(left) > 0 {
		p.t.Errorf("left in the runtime's state: %v", left)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + p.group)
	more, _ := filepath.Glob("/sys/fs/cgroup" + p.group)
	for _, dir := range append(groups, more...) {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() {
				p.t.Errorf("cgroup left: %s/%s", dir, e.Name())
			}
		}
		os.Remove(dir)
		os.Remove(filepath.Dir(dir))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), p.work) {
		p.t.Errorf("mount left below %s (%v)", p.work, err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range procs {
		if cmdline, err := os.ReadFile(path); err == nil && strings.Contains(string(cmdline), p.work) {
			p.t.Errorf("process left: %s: %q", path, cmdline)
		}
	}
}

// change alters a spec before its container is made.
type change func(*specs.Spec, *monitor.CreateRequest)

// create makes the bundle of a container and registers it.
func (p *pod) create(id string, args []string, changes ...change) monitor.CreateRequest {
	p.t.Helper()
	req := p.prepare(id, args, changes...)
	if err := p.Create(p.t.Context(), req); err != nil {
		p.t.Fatal(err)
	}
	return req
}

// prepare makes the bundle of a container.
func (p *pod) prepare(id string, args []string, changes ...change) monitor.CreateRequest {
	p.t.Helper()
	program, err := buildProgram()
	if err != nil {
		p.t.Fatal(err)
	}
	bundle := filepath.Join(p.work, "c", id)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs", "proc"), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Link(program, filepath.Join(bundle, "rootfs", "prog")); err != nil {
		data, readErr := os.ReadFile(program)
		if err := errors.Join(readErr, os.WriteFile(filepath.Join(bundle, "rootfs", "prog"), data, 0o755)); err != nil {
			p.t.Fatal(err)
		}
	}
	spec := &specs.Spec{
		Version: p.version,
		Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/"}},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: p.group + "/" + id,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
		},
	}
	req := monitor.CreateRequest{ID: id, Bundle: bundle, LogPath: filepath.Join(p.work, id+".log")}
	for _, c := range changes {
		c(spec, &req)
	}
	req.CgroupsPath = spec.Linux.CgroupsPath
	data, err := json.Marshal(spec)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return req
}

// run creates and starts a container.
func (p *pod) run(id string, args []string, changes ...change) monitor.CreateRequest {
	p.t.Helper()
	req := p.create(id, args, changes...)
	if _, err := p.Start(p.t.Context(), task.ID{Container: id}); err != nil {
		p.t.Fatal(err)
	}
	return req
}

// end waits for the exit of a container and deletes it.
func (p *pod) end(id string) task.Exit {
	p.t.Helper()
	exit, err := p.Wait(p.t.Context(), task.ID{Container: id})
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.Delete(p.t.Context(), task.ID{Container: id}); err != nil {
		p.t.Error(err)
	}
	return exit
}

func (p *pod) kill(id string) {
	p.t.Helper()
	if err := p.Signal(p.t.Context(), task.ID{Container: id}, 9, true); err != nil && !errdefs.IsNotFound(err) {
		p.t.Error(err)
	}
}

// exec runs a command in a container to its end.
func (p *pod) exec(ctx context.Context, container, id string, args []string, stdin string) (stdout, stderr string, exit task.Exit, err error) {
	process, _ := json.Marshal(specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/"}})
	pid := task.ID{Container: container, Exec: id}
	if err := p.Exec(ctx, task.ExecRequest{ID: pid, Process: process, Stdin: stdin != "", Stdout: true, Stderr: true}); err != nil {
		return "", "", exit, err
	}
	defer p.Delete(context.WithoutCancel(ctx), pid)
	var out, errOut bytes.Buffer
	streams := task.Stdio{Stdout: &out, Stderr: &errOut}
	if stdin != "" {
		streams.Stdin = strings.NewReader(stdin)
	}
	attached := make(chan error, 1)
	go func() { attached <- p.Attach(ctx, pid, streams) }()
	if _, err = p.Start(ctx, pid); err == nil {
		exit, err = p.Wait(ctx, pid)
	}
	if attachErr := <-attached; err == nil {
		err = attachErr
	}
	return out.String(), errOut.String(), exit, err
}

// execDetached starts a command without stdio.
func (p *pod) execDetached(id task.ID, args []string) (pid int) {
	p.t.Helper()
	process, _ := json.Marshal(specs.Process{Args: args, Cwd: "/"})
	if err := p.Exec(p.t.Context(), task.ExecRequest{ID: id, Process: process}); err != nil {
		p.t.Fatal(err)
	}
	started, err := p.Start(p.t.Context(), id)
	if err != nil {
		p.t.Fatal(err)
	}
	return int(started)
}

// records are the contents of a CRI log, as "stdout F text".
func records(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		list = append(list, rest)
	}
	return list
}
