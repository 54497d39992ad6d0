package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pistis-run/pistis/internal/config"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func testHost(t *testing.T) host {
	t.Helper()
	h := host{Options: Options{Config: config.Default()}, proc: filepath.Join(t.TempDir(), "proc"), dev: filepath.Join(t.TempDir(), "dev")}
	h.Config.Root = t.TempDir()
	return h
}

func TestEveryCheckSaysSomething(t *testing.T) {
	cfg := config.Default()
	cfg.VM.Acceleration = "tcg" // no test guest
	cfg.Root = filepath.Join(t.TempDir(), "not", "yet", "there")
	seen := map[string]bool{}
	for _, c := range Run(t.Context(), Options{Config: cfg}) {
		if c.Name == "" || c.Detail == "" || seen[c.Name] || c.OK != (c.Level != LevelFail) {
			t.Errorf("%+v", c)
		}
		if c.Level == LevelFail && c.Advice == "" && !strings.Contains(c.Detail, "no answer") {
			t.Errorf("%s fails without advice", c.Name)
		}
		seen[c.Name] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d checks", len(seen))
	}
}

func TestKVM(t *testing.T) {
	h := testHost(t)
	if f := h.kvm(t.Context()); f.level != LevelWarn || !strings.Contains(f.advice, "emulated") {
		t.Errorf("without the device: %+v", f)
	}
	h.Config.VM.Acceleration = "kvm"
	if f := h.kvm(t.Context()); f.level != LevelFail {
		t.Errorf("forced, without the device: %+v", f)
	}
	write(t, filepath.Join(h.dev, "kvm"), "")
	h.probe = func(context.Context) (bool, string, error) { return false, "the guest hung", nil }
	if f := h.kvm(t.Context()); f.level != LevelFail || !strings.Contains(f.detail, "the guest hung") {
		t.Errorf("a device on which nothing runs: %+v", f)
	}
	h.probe = func(context.Context) (bool, string, error) { return false, "", errors.New("no guest") }
	if f := h.kvm(t.Context()); f.level != LevelWarn || !strings.Contains(f.detail, "no guest") {
		t.Errorf("without an answer: %+v", f)
	}
	h.probe = func(context.Context) (bool, string, error) { return true, "a test guest ran", nil }
	if f := h.kvm(t.Context()); f.level != LevelOK {
		t.Errorf("good: %+v", f)
	}
	h.Config.VM.Acceleration = "tcg"
	if f := h.kvm(t.Context()); f.level != LevelOK {
		t.Errorf("not wanted: %+v", f)
	}
}

// TestNeedsKVM: a hypervisor that nobody has to have.
func TestNeedsKVM(t *testing.T) {
	h := testHost(t)
	program := filepath.Join(t.TempDir(), "firecracker")
	h.Config.VM.Firecracker = program
	want := func(what string, level Level, detail string) {
		t.Helper()
		if f := h.firecracker(t.Context()); f.level != level || !strings.Contains(f.detail, detail) {
			t.Errorf("%s: %+v", what, f)
		}
	}
	want("missing", LevelWarn, "vm.firecracker")
	write(t, program, "#!/bin/sh\necho Firecracker v1.7.0\n")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	want("too old", LevelWarn, "1.8 or later")
	write(t, program, "#!/bin/sh\necho Firecracker v1.16.1\n")
	h.probe = func(context.Context) (bool, string, error) { return false, "the guest hung", nil }
	want("no KVM", LevelWarn, "the guest hung")
	h.probe = func(context.Context) (bool, string, error) { return false, "", errors.New("no guest") }
	want("unknown", LevelWarn, "no guest")
	h.probe = func(context.Context) (bool, string, error) { return true, "", nil }
	want("good", LevelOK, "version 1.16.1")
	h.Config.VM.Acceleration = "tcg"
	want("emulation asked for", LevelWarn, "vm.acceleration is tcg")
	delete(h.Config.Handlers, "fc")
	want("not configured", LevelOK, "not needed")
}

func TestChoice(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Default()
	cfg.VM.QEMU, cfg.VM.CloudHypervisor, cfg.VM.Firecracker = filepath.Join(dir, "qemu"), filepath.Join(dir, "clh"), filepath.Join(dir, "fc")
	h := host{Options: Options{Config: cfg}}
	expect := func(what string, level Level, words ...string) {
		t.Helper()
		f := h.choice(t.Context())
		for _, w := range words {
			if f.level != level || !strings.Contains(f.detail, w) {
				t.Errorf("%s: %+v, want %v with %q", what, f, level, w)
			}
		}
	}
	h.probe = func(context.Context) (bool, string, error) { return false, "the guest hung", nil }
	expect("nothing is there", LevelWarn, "no hypervisor works for handler vm", "qemu is not there")
	for _, path := range []string{cfg.VM.CloudHypervisor, cfg.VM.Firecracker} {
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	expect("nothing that emulates", LevelWarn, "cloud-hypervisor needs KVM", "firecracker needs KVM")
	h.probe = func(context.Context) (bool, string, error) { return true, "", nil }
	expect("KVM without QEMU", LevelOK, "handler vm: cloud-hypervisor, under KVM; qemu is not there")
	h.probe = func(context.Context) (bool, string, error) { return false, "", errors.New("no guest") }
	expect("nobody knows", LevelWarn, "no guest")
	if err := os.WriteFile(cfg.VM.QEMU, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	h.Config.VM.Acceleration = "tcg"
	expect("emulated", LevelOK, "handler vm: qemu, emulated")
}

func TestGuest(t *testing.T) {
	h := testHost(t)
	if f := h.guest(t.Context()); f.level != LevelFail || !strings.Contains(f.advice, "pistis guest build") {
		t.Errorf("%+v", f)
	}
	h.Config.VM.Kernel, h.Config.VM.Initrd = filepath.Join(h.dev, "k"), filepath.Join(h.dev, "i")
	if f := h.guest(t.Context()); f.level != LevelFail {
		t.Errorf("%+v", f)
	}
	write(t, h.Config.VM.Kernel, "")
	write(t, h.Config.VM.Initrd, "")
	if f := h.guest(t.Context()); f.level != LevelOK {
		t.Errorf("%+v", f)
	}
}

func TestCgroups(t *testing.T) {
	const (
		v2     = "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
		memory = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
		cpu    = "32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
		pids   = "33 23 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
	)
	for mounts, want := range map[string]Level{
		v2: LevelOK, memory + cpu + pids: LevelOK, v2 + memory + cpu + pids: LevelOK, memory + cpu: LevelFail, "": LevelFail, "junk - x\n": LevelFail,
	} {
		h := testHost(t)
		write(t, filepath.Join(h.proc, "self", "mountinfo"), mounts)
		if f := h.cgroups(t.Context()); f.level != want {
			t.Errorf("%q: %+v", mounts, f)
		}
	}
	for mounts, want := range map[string]bool{v2: true, memory + cpu + pids: false, strings.Replace(v2, "cgroup2 rw", "cgroup2 rw,favordynmods", 1): false} {
		h := testHost(t)
		write(t, filepath.Join(h.proc, "self", "mountinfo"), mounts)
		if f := h.cgroups(t.Context()); strings.Contains(f.advice, "favordynmods /sys/fs/cgroup/unified") != want {
			t.Errorf("%q: %+v", mounts, f)
		}
	}
}

func TestMemory(t *testing.T) {
	for content, want := range map[string]Level{
		"MemTotal: 9 kB\nMemAvailable:   8388608 kB\n": LevelOK, "MemAvailable: 1024 kB\n": LevelFail, "MemTotal: 9 kB\n": LevelWarn, "MemAvailable: x kB\n": LevelWarn,
	} {
		h := testHost(t)
		write(t, filepath.Join(h.proc, "meminfo"), content)
		if f := h.memory(t.Context()); f.level != want {
			t.Errorf("%q: %+v", content, f)
		}
	}
}

func TestNetwork(t *testing.T) {
	h := testHost(t)
	if f := h.network(t.Context()); f.level != LevelOK {
		t.Errorf("%+v", f)
	}
	h.Config.Network.CNIConfDir, h.Config.Network.CNIBinDirs = filepath.Join(h.dev, "net.d"), []string{filepath.Join(h.dev, "bin")}
	if f := h.network(t.Context()); f.level != LevelFail {
		t.Errorf("%+v", f)
	}
	write(t, filepath.Join(h.dev, "net.d", "10-x.conflist"), "{}")
	if f := h.network(t.Context()); f.level != LevelFail {
		t.Errorf("%+v", f)
	}
	write(t, filepath.Join(h.dev, "bin", "bridge"), "")
	if f := h.network(t.Context()); f.level != LevelOK {
		t.Errorf("%+v", f)
	}
}
