package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/vmpod"
)

// machinesFor are those of a host with these programs, where guests run as told.
func machinesFor(t *testing.T, accel string, programs ...string) (*machines, *bytes.Buffer) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range append(programs, "vmlinuz", "initrd") {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("\x7fELF, or a script"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	vm := config.Default().VM
	vm.Acceleration = accel
	vm.QEMU, vm.Firecracker, vm.CloudHypervisor = filepath.Join(dir, "qemu"), filepath.Join(dir, "firecracker"), filepath.Join(dir, "cloud-hypervisor")
	guest := guestFiles{Guest: vmpod.Guest{Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd")}}
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	kernels := &vmlinuxes{dir: filepath.Join(dir, "vmlinux")}
	return &machines{vm: vm, guest: guest, accel: newAccelerator(vm, guest, kernels, dir, log), log: log, kernels: kernels}, &said
}

func TestChooseHypervisor(t *testing.T) {
	for _, tt := range []struct {
		name, accel, asked string
		programs           []string
		want               string // a hypervisor, or a part of an error
	}{
		{"preferred", "kvm", "", []string{"qemu", "firecracker", "cloud-hypervisor"}, "qemu"},
		{"second", "kvm", "", []string{"firecracker", "cloud-hypervisor"}, "cloud-hypervisor"},
		{"third", "kvm", "", []string{"firecracker"}, "firecracker"},
		{"none", "kvm", "", nil, "no such file"},
		{"named", "kvm", "firecracker", []string{"qemu", "firecracker"}, "firecracker"},
		{"named and missing", "kvm", "firecracker", []string{"qemu"}, "vm.firecracker"},
		{"emulated", "tcg", "", []string{"qemu", "firecracker"}, "qemu"},
		{"named and cannot emulate", "tcg", "cloud-hypervisor", []string{"qemu", "cloud-hypervisor"}, "needs KVM"},
		{"none emulates", "tcg", "", []string{"firecracker"}, "needs KVM"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m, said := machinesFor(t, tt.accel, tt.programs...)
			got, err := m.choose(context.Background(), tt.asked)
			if ready := m.ready(tt.asked); (ready == nil) != (err == nil) {
				t.Errorf("ready: %v, chosen: %v", ready, err)
			}
			if err != nil {
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want a failed precondition with %q", err, tt.want)
				}
				return
			}
			if got.Hypervisor != tt.want || filepath.Base(got.Binary) != tt.want {
				t.Errorf("chosen %q at %s, want %q", got.Hypervisor, got.Binary, tt.want)
			}
			if tt.asked == "" && strings.Count(said.String(), "hypervisor="+tt.want) != 1 {
				t.Errorf("the log says %q", said)
			}
			if _, err := m.choose(context.Background(), tt.asked); err != nil || strings.Count(said.String(), "\n") > 1 {
				t.Errorf("the second time: %v, the log says %q", err, said)
			}
		})
	}
}

// TestVmlinuxIsMadeOnce: one file per kernel, and a new one when the kernel is another.
func TestVmlinuxIsMadeOnce(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinuz")
	v := &vmlinuxes{dir: filepath.Join(t.TempDir(), "vmlinux")}
	made := map[string]bool{}
	for _, content := range []string{"\x7fELF one", "\x7fELF one", "\x7fELF another"} {
		if err := os.WriteFile(kernel, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		path, err := v.get(kernel)
		if err != nil {
			t.Fatal(err)
		}
		made[path] = true
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("%s holds %q, %v", path, got, err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	// A VM that was given the first may not have opened it yet.
	if entries, err := os.ReadDir(v.dir); err != nil || len(entries) != 2 || len(made) != 2 {
		t.Errorf("%d files of %d are left, %v", len(entries), len(made), err)
	}
	if err := os.WriteFile(kernel, []byte("\x7fELF third"), 0o600); err != nil {
		t.Fatal(err)
	}
	later := &vmlinuxes{dir: v.dir}
	if _, err := later.get(kernel); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(v.dir); err != nil || len(entries) != 1 {
		t.Errorf("%d files are left by the next daemon, %v", len(entries), err)
	}
	if err := os.WriteFile(kernel, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := v.get(kernel); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no kernel: %v", err)
	}
}
