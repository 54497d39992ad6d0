package firecracker

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm/vmmtest"
)

func fake() vmmtest.Fake {
	return vmmtest.Fake{
		Version: "Firecracker v1.16.1", Flag: "--api-sock",
		Listen:  func() (net.Listener, error) { return net.Listen("unix", vmm.JailDir+"/"+apiSocket) },
		Refuses: "/boot-source", Refusal: `{"fault_message": "not with me, no"}`, Dies: "/entropy", Hangs: "/vsock",
	}
}

func TestMain(m *testing.M) { fake().Main(m) }

func TestFaults(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte("\x7fELF and so on"), 0o644); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := hypervisor.Config{ID: "x", Binary: self, Accel: hypervisor.KVM, Kernel: kernel, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory}}
	fake().Faults(t, Driver{}, cfg, []string{"not with me, no"}, []string{filterFile})
	t.Run("socket in the way", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, logPipe), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cfg := cfg
		cfg.RunDir = dir
		_, err := Driver{}.Start(t.Context(), cfg)
		if !errors.Is(err, os.ErrExist) {
			t.Errorf("start: %v", err)
		}
	})
	t.Run("not a vmlinux", func(t *testing.T) {
		bz := filepath.Join(t.TempDir(), "vmlinuz")
		if err := os.WriteFile(bz, []byte("MZ and so on"), 0o644); err != nil {
			t.Fatal(err)
		}
		cfg := cfg
		cfg.Kernel, cfg.RunDir = bz, t.TempDir()
		_, err := Driver{}.Start(t.Context(), cfg)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "vmlinux") {
			t.Errorf("a bzImage: %v", err)
		}
	})
}
