package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
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

func TestProbeCache(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dir", "probe.json")
	want := probeResult{Key: probeKey{BootID: "b", User: &hypervisor.User{UID: 1}}, Reason: "r"}
	if err := writeProbe(file, want); err != nil {
		t.Fatal(err)
	}
	got, ok := readProbe(file)
	if !ok || !got.Key.equal(want.Key) || got.Reason != "r" {
		t.Errorf("read %+v, %v", got, ok)
	}
	want.Key.User.UID = 2
	if got.Key.equal(want.Key) {
		t.Error("another user, the same key")
	}
	os.WriteFile(file, []byte("{"), 0o600)
	if _, ok := readProbe(file); ok {
		t.Error("a damaged cache is an answer")
	}
}

func TestNeedle(t *testing.T) {
	n := newNeedle("needle")
	for _, b := range []byte("hay need\nhay needle hay") {
		n.Write([]byte{b})
	}
	select {
	case <-n.found:
	default:
		t.Error("not found")
	}
	if len(n.last) > len(n.want) {
		t.Errorf("%d bytes are kept", len(n.last))
	}
}

// TestProbeWaits: a guest that goes on is waited for, one that is silent is not, and neither is one that never comes up.
func TestProbeWaits(t *testing.T) {
	for _, c := range []struct {
		name   string
		every  time.Duration // between two lines of the console
		up     int           // after which line the guest is up; 0 is never
		ends   int           // after which line it ends
		reason string
	}{
		{"slow", probeSilence - time.Second, 5, 0, ""},
		{"silent", probeSilence + time.Second, 5, 0, "silent for 15s"},
		{"crawling", time.Second, 0, 0, "not up after 1m40s"},
		{"ended", time.Second, 0, 3, guestEnded},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, ended := newNeedle(ProbeAnswer), make(chan struct{})
				ctx, cancel := context.WithCancel(t.Context())
				var guest sync.WaitGroup
				defer guest.Wait()
				guest.Go(func() {
					for line := 1; ctx.Err() == nil; line++ {
						time.Sleep(c.every)
						text := "a line\n"
						if line == c.up {
							text = ProbeAnswer
						}
						n.Write([]byte(text))
						if line == c.ends {
							close(ended)
						}
					}
				})
				reason, err := n.wait(ctx, ended)
				if err != nil || (reason == "") != (c.reason == "") || !strings.Contains(reason, c.reason) {
					t.Errorf("%q, %v; want %q", reason, err, c.reason)
				}
				cancel()
				if _, err := newNeedle("x").wait(ctx, nil); !errors.Is(err, context.Canceled) {
					t.Errorf("after the caller's end: %v", err)
				}
			})
		})
	}
}
