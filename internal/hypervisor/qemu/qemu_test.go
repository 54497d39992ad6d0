package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

func TestLUNs(t *testing.T) {
	d := newDisks([]hypervisor.Disk{{ID: "a"}, {ID: "b"}})
	lun, err := d.claim("c")
	if err != nil || lun != 2 {
		t.Fatalf("claim: %d, %v", lun, err)
	}
	if _, err := d.claim("c"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("claim of a disk that is being attached: %v", err)
	}
	if _, err := d.claimAttached("c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("detach of a disk that is being attached: %v", err)
	}
	d.settle(lun, false)
	if lun, err := d.claimAttached("a"); err != nil || lun != 0 {
		t.Errorf("detach: %d, %v", lun, err)
	}
	if lun, _ := d.claim("d"); lun != 2 {
		t.Errorf("LUN 0 is busy and was given away, or 2 was not: %d", lun)
	}
	d.settle(0, false)
	if lun, _ := d.claim("e"); lun != 0 {
		t.Errorf("the free LUN is 0, not %d", lun)
	}
	for i := range maxLUNs - 3 {
		if _, err := d.claim("x" + strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.claim("full"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("claim of LUN 256: %v", err)
	}
}

// TestDiskFile: QEMU gets a descriptor of exactly the access that it asks for.
func TestDiskFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	for _, tt := range []struct {
		flags    int
		readOnly bool
		want     int // -1: refused
	}{
		{os.O_RDWR, false, unix.O_RDWR},
		{os.O_RDWR, true, unix.O_RDONLY},
		{os.O_RDONLY, true, unix.O_RDONLY},
		{os.O_RDONLY, false, -1},
		{os.O_WRONLY, false, -1},
	} {
		f, err := os.OpenFile(path, tt.flags|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		got, err := diskFile(hypervisor.Disk{ID: "d", File: f, ReadOnly: tt.readOnly})
		f.Close()
		if tt.want < 0 {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("flags %#x, read-only %v: %v, want InvalidArgument", tt.flags, tt.readOnly, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.FcntlInt(got.Fd(), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_ACCMODE != tt.want {
			t.Errorf("flags %#x, read-only %v: access %#x, %v", tt.flags, tt.readOnly, flags, err)
		}
		got.Close()
	}
}

// TestUnreadableKernel: a file that QEMU's user cannot read is named before QEMU fails on it.
func TestUnreadableKernel(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Driver{}.Start(t.Context(), hypervisor.Config{
		ID: "x", Binary: "/bin/false", Accel: hypervisor.TCG, Kernel: kernel, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory},
		User: &hypervisor.User{UID: 4_000_000, GID: 4_000_000},
	})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("start: %v", err)
	}
}

// TestSilentMonitor: a VMM that runs and never speaks is ended when the context is.
func TestSilentMonitor(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "vmm")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var pid int
	_, err := Driver{}.Start(ctx, hypervisor.Config{
		ID: "x", Binary: binary, Accel: hypervisor.TCG, Kernel: kernel, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory},
		Started: func(p int) error { pid = p; return nil },
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start: %v", err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v", pid, err)
	}
}

// TestLastWords: what a VMM says before it dies is in the error.
func TestLastWords(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "vmm")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\nyes no | head -5000 >&2\necho 'the floor is wet' >&2\necho \"qemu: warning: TCG doesn't support requested feature: CPUID.01H:ECX.x2apic\" >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Driver{}.Start(t.Context(), hypervisor.Config{
		ID: "x", Binary: binary, Accel: hypervisor.TCG, Kernel: binary, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory},
	})
	if err == nil || !strings.Contains(err.Error(), "the floor is wet") || strings.Contains(err.Error(), "TCG") || !strings.Contains(err.Error(), "status 3") || len(err.Error()) > 500 {
		t.Errorf("start: %v", err)
	}
}

// TestNoMemoryDevice: a QEMU that was built without the device for memory in common is started without it.
func TestNoMemoryDevice(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "vmm")
	script := "#!/bin/sh\ncase \"$*\" in *" + memoryDriver + "*) echo \"qemu: " + noMemoryDevice + "\" >&2; exit 1;; esac\necho \"started without\" >&2\nexit 3\n"
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	starts := 0
	_, err := Driver{}.Start(t.Context(), hypervisor.Config{
		ID: "x", Binary: binary, Accel: hypervisor.TCG, Kernel: binary, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory},
		Started: func(int) error { starts++; return nil },
	})
	if err == nil || !strings.Contains(err.Error(), "started without") || starts != 2 {
		t.Errorf("%d starts: %v", starts, err)
	}
}
