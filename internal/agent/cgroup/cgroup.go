package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// Root is where boot mounts the hierarchy, Parent the group of all containers.
	Root   = "/sys/fs/cgroup"
	Parent = "/pistis"

	// maxFile bounds what is read of one control file, and maxPids the processes of one group.
	maxFile = 1 << 20
	maxPids = 1 << 17
)

// Group is the directory of a cgroup.
type Group string

// OfContainer is a container's group.
func OfContainer(id string) Group { return Group(filepath.Join(Root, Parent, id)) }

// Path is the group as a runtime spec's linux.cgroupsPath names it.
func Path(id string) string { return Parent + "/" + id }

// Prepare makes the parent of all containers' groups and gives it all controllers.
func Prepare() error {
	parent := filepath.Join(Root, Parent)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{Root, parent} {
		names, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err != nil {
			return err
		}
		var all []string
		for name := range strings.FieldsSeq(string(names)) {
			all = append(all, "+"+name)
		}
		// One write: each costs the kernel a grace period.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(all, " ")), 0); err != nil {
			return fmt.Errorf("cgroup controllers: %w", err)
		}
	}
	return nil
}

func (g Group) read(name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(string(g), name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// Kill kills every process of the group and of the groups below. A group that does not exist has none.
func (g Group) Kill() error {
	err := os.WriteFile(filepath.Join(string(g), "cgroup.kill"), []byte("1"), 0)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(string(g)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// A kernel before 5.14.
	return g.Signal(unix.SIGKILL)
}

// Signal sends to every process of the group and of the groups below.
func (g Group) Signal(sig unix.Signal) error {
	pids, err := g.Pids()
	for _, pid := range pids {
		if e := unix.Kill(pid, sig); e != nil && e != unix.ESRCH {
			err = errors.Join(err, fmt.Errorf("signal %d to process %d: %w", sig, pid, e))
		}
	}
	return err
}

// Pids lists the processes of the group and of the groups below, at most 131072.
func (g Group) Pids() ([]int, error) {
	var pids []int
	err := filepath.WalkDir(string(g), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // ended meanwhile
		}
		if err != nil || !d.IsDir() {
			return err
		}
		text, err := Group(path).read("cgroup.procs")
		if err != nil {
			return nil // a threaded group, or one that ended
		}
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil && pid > 0 && len(pids) < maxPids {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// OOMKills counts the processes of the group and of those below that the kernel killed for want of memory.
func (g Group) OOMKills() uint64 {
	text, err := g.read("memory.events")
	if err != nil {
		return 0
	}
	return keyed(text)["oom_kill"]
}

// keyed parses "name value" lines.
func keyed(text []byte) map[string]uint64 {
	values := map[string]uint64{}
	for scan := bufio.NewScanner(bytes.NewReader(text)); scan.Scan(); {
		name, value, ok := strings.Cut(scan.Text(), " ")
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64); ok && err == nil {
			values[name] = n
		}
	}
	return values
}
