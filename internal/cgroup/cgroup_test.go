package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestHierarchies(t *testing.T) {
	table := `25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
28 25 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
29 25 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
30 25 0:24 /docker/x /mnt/memory rw - cgroup cgroup rw,memory
nonsense
`
	found, err := hierarchies(strings.NewReader(table))
	got := roots(found, usual)
	want := []string{"/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("hierarchies = %q, %v, want %q", got, err, want)
	}
	got = roots(found, func([]string) bool { return true })
	want = slices.Insert(want, 1, "/sys/fs/cgroup/cpuset")
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("all hierarchies = %q, %v, want %q", got, err, want)
	}
}

func TestOfSpec(t *testing.T) {
	for _, path := range []string{"", "relative", "a.slice:b:c"} {
		if _, err := OfSpec(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// TestOOMKillsAround: a group without a memory controller uses the memory of one above it.
func TestOOMKillsAround(t *testing.T) {
	root := t.TempDir()
	for dir, events := range map[string]string{"": "", "kubepods": "oom_kill 7\n", "kubepods/pod": "oom_kill 2\n", "kubepods/pod/vm": ""} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"cgroup.procs": "", "memory.events": events} {
			if name == "memory.events" && events == "" {
				continue
			}
			if err := os.WriteFile(filepath.Join(root, dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for path, want := range map[string]uint64{"kubepods/pod/vm": 2, "kubepods/pod": 2, "kubepods": 7, "other": 0} {
		g, err := open(path, []string{root})
		if err != nil {
			t.Fatal(err)
		}
		if got := g.OOMKillsAround(); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

func TestParseOOMKills(t *testing.T) {
	for text, want := range map[string]uint64{
		"low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 0\n": 3, // v2
		"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n":               2, // v1
		"": 0, "oom_kill x\n": 0,
	} {
		if got := parseOOMKills([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

func TestOpenRefusesPathsOutside(t *testing.T) {
	for _, path := range []string{"", "/", ".", "../x", "a/../../b"} {
		if _, err := open(path, []string{"/sys/fs/cgroup"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("open(%q) = %v, want InvalidArgument", path, err)
		}
	}
}

// TestKillAndRemove uses the machine's real hierarchies.
func TestKillAndRemove(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: cgroups need root")
	}
	g, err := Open(fmt.Sprintf("pistis-test-%d/pod", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(); err != nil {
		t.Fatal(err)
	}
	parent, err := Open(fmt.Sprintf("pistis-test-%d", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, g := range []*Group{g, parent} {
			if err := g.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}()
	if err := g.Create(); err != nil {
		t.Fatalf("Create is not idempotent: %v", err)
	}
	cmd := exec.Command("sh", "-c", "sleep 1000 & sleep 1000 & echo; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// The shell is added before it forks, so that its children are members too.
	cmd.Args[2] = "read x; " + cmd.Args[2]
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	in.Close()
	out.Read(make([]byte, 1))
	pids, err := g.Pids()
	if err != nil || len(pids) != 3 {
		t.Fatalf("Pids = %v, %v, want three", pids, err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the shell was not killed")
	}
}
