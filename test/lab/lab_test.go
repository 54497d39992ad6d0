package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asCommand in the environment makes the test's program lab itself.
const asCommand = "LAB_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	otherRoles()
	if os.Getenv(asCommand) != "" {
		os.Exit(labMain(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// needLab skips the test where no lab can be made, and returns the flags for one.
func needLab(t *testing.T) []string {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED, no lab: short tests were asked for")
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, no lab: the test does not run as root")
	}
	for _, program := range []string{qemuProgram, virtiofsdProgram, "mkfs.ext4", "depmod"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("SKIPPED, no lab: %v", err)
		}
	}
	flags := []string{"-timeout", "10m"}
	if guest := os.Getenv("PISTIS_GUEST"); guest != "" {
		flags = append(flags, "-cache", filepath.Join(filepath.Dir(guest), "kernels"))
	}
	return flags
}

// lab runs a command and fails the test if the lab fails.
func lab(t *testing.T, command ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = labMain(append(needLab(t), command...), &out, &errs)
	if code == failed {
		t.Fatalf("lab: %s", errs.String())
	}
	return code, out.String(), errs.String()
}

func TestTrue(t *testing.T) {
	if code, _, stderr := lab(t, "true"); code != 0 {
		t.Errorf("true ended with %d: %s", code, stderr)
	}
}

// TestCommand: output and exit code come back, the lab is a host of virtual machines, and what is written in it stays
// there.
func TestCommand(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -e; cd %s; cat there; echo after >there; echo new >new; cat there >&2
		test "$LAB_TEST_WORD" = 'two words'
		for d in kvm vhost-vsock vhost-net net/tun; do test -c /dev/$d; done
		grep -q memory /sys/fs/cgroup/cgroup.subtree_control; exit 7`, dir)
	t.Setenv("LAB_TEST_WORD", "two words")
	code, stdout, stderr := lab(t, "sh", "-c", script)
	if code != 7 || stdout != "before" || stderr != "after\n" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "there")); err != nil || string(got) != "before" {
		t.Errorf("after the lab the file holds %q, %v", got, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that was made in the lab: %v", err)
	}
}

// TestSystemd: the command is a service of a systemd that makes units when it is asked to.
func TestSystemd(t *testing.T) {
	if _, err := os.Stat(systemdProgram); err != nil {
		t.Skipf("SKIPPED, no systemd: %v", err)
	}
	const script = `set -e; cat /proc/1/comm; cat /proc/self/cgroup
		systemd-run -q --scope --unit=probe cat /proc/self/cgroup; exit 3`
	code, stdout, stderr := lab(t, "-systemd", "sh", "-c", script)
	if want := "systemd\n0::/system.slice/lab.service\n0::/system.slice/probe.scope\n"; code != 3 || stdout != want {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// TestKilled: QEMU and virtiofsd die with a lab that is killed.
func TestKilled(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", append(needLab(t), "sleep", "infinity")...)
	cmd.Env = append(os.Environ(), asCommand+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	deadline := time.Now().Add(5 * time.Minute) // a kernel may have to be fetched
	for len(pids) < 2 && time.Now().Before(deadline) {
		pids = childrenNamed(t, cmd.Process.Pid, "qemu-system", "virtiofsd")
		time.Sleep(10 * time.Millisecond)
	}
	var files []*os.File
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "pidfd")
		defer f.Close()
		files = append(files, f)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() // it was killed
	if len(files) != 2 {
		t.Fatalf("the lab started the processes %v, want QEMU and virtiofsd", pids)
	}
	for i, f := range files {
		poll := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(time.Minute.Milliseconds())); n != 1 || err != nil {
			t.Errorf("process %d outlives its lab: %v", pids[i], err)
		}
	}
}

// childrenNamed are the children of a process whose command begins with one of the names.
func childrenNamed(t *testing.T, parent int, names ...string) (pids []int) {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", parent))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for child := range strings.FieldsSeq(string(children)) {
			name, err := os.ReadFile("/proc/" + child + "/comm")
			if err != nil {
				continue
			}
			for _, want := range names {
				if strings.HasPrefix(string(name), want) {
					var pid int
					fmt.Sscan(child, &pid)
					pids = append(pids, pid)
				}
			}
		}
	}
	return pids
}

func TestUsage(t *testing.T) {
	var out, errs bytes.Buffer
	if code := labMain(nil, &out, &errs); code != failed || !strings.Contains(errs.String(), "usage") {
		t.Errorf("without a command: %d, %s", code, errs.String())
	}
}
