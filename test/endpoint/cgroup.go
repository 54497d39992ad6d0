package endpoint

import (
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
)

// cgroupRoot is where the hierarchies are.
const cgroupRoot = "/sys/fs/cgroup"

// accounting is the hierarchy that counts processor time, where it is one of cgroup v1.
const accounting = cgroupRoot + "/cpuacct"

// cgroup holds the daemon's own cgroup and, beside it, its pods', so that both are counted together.
func (e *Endpoint) cgroup() string { return filepath.Dir(e.Scope.Cgroup) }

func (e *Endpoint) daemonCgroup() string { return filepath.Join(accounting, e.cgroup(), "daemon") }

func (e *Endpoint) makeCgroup() error {
	if !e.accounts() {
		return nil
	}
	return errors.Join(os.MkdirAll(e.daemonCgroup(), 0o755), e.favour())
}

// shares is the most that a cgroup of v1 can have.
const shares = "262144"

// favour gives the pods the processors before whatever else the machine does, as a node's kubelet does. Otherwise all of
// them together count as much as one other process, and with them what a daemon runs in their cgroups.
func (e *Endpoint) favour() error {
	dir := filepath.Join(cgroupRoot, "cpu", e.cgroup())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cpu.shares"), []byte(shares), 0)
}

func (e *Endpoint) accounts() bool {
	_, err := os.Stat(filepath.Join(accounting, "cpuacct.usage"))
	return err == nil
}

// startInCgroup starts the process as a member of the daemon's cgroup: a shell enters it and becomes the daemon.
func (e *Endpoint) startInCgroup(cmd *exec.Cmd) error {
	if e.accounts() {
		const enter = `echo $$ >"$0" && exec "$@"`
		procs := filepath.Join(e.daemonCgroup(), "cgroup.procs")
		cmd.Args = append([]string{"sh", "-c", enter, procs}, e.argv...)
		cmd.Path = "/bin/sh"
	}
	return cmd.Start()
}

// CPU is the processor time that the daemon, all that it started and the pods have used; false where the host has no
// accounting hierarchy of cgroup v1.
func (e *Endpoint) CPU() (time.Duration, bool) {
	b, err := os.ReadFile(filepath.Join(accounting, e.cgroup(), "cpuacct.usage"))
	if err != nil {
		return 0, false
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return time.Duration(used), err == nil
}

// RemoveCgroups kills what is left in a cgroup, given as its path in every hierarchy, and removes it with all below it.
func RemoveCgroups(path string) error {
	hierarchies, err := filepath.Glob(cgroupRoot + "/*" + path)
	if err != nil {
		return err
	}
	for _, dir := range append(hierarchies, cgroupRoot+path) {
		if removeErr := removeCgroup(dir); removeErr != nil {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// removeCgroup removes a tree of cgroups from its leaves up.
func removeCgroup(root string) error {
	var dirs []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	for i := len(dirs) - 1; i >= 0; i-- {
		deadline := time.Now().Add(patience)
		for {
			removeErr := os.Remove(dirs[i])
			if removeErr == nil || errors.Is(removeErr, fs.ErrNotExist) {
				break
			}
			if !errors.Is(removeErr, syscall.EBUSY) || time.Now().After(deadline) {
				err = errors.Join(err, fmt.Errorf("remove cgroup: %w", removeErr))
				break
			}
			killMembers(dirs[i])
			time.Sleep(10 * time.Millisecond) // the kernel tells nobody when a cgroup of v1 has become empty
		}
	}
	return err
}

func killMembers(dir string) {
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for field := range strings.FieldsSeq(string(b)) {
		// A process of another PID namespace shows as 0, which would be our own group.
		if pid, err := strconv.Atoi(field); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
