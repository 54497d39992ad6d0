package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// TestMain makes the test's program a Firecracker as well, where it is started as one.
func TestMain(m *testing.M) {
	switch {
	case slices.Contains(os.Args, "--version"):
		fmt.Println("Firecracker v1.16.1")
		os.Exit(0)
	case slices.Contains(os.Args, "--api-sock"):
		os.Exit(playFirecracker())
	}
	os.Exit(m.Run())
}

// playFirecracker does what the file mode in its directory says.
func playFirecracker() int {
	mode, err := os.ReadFile(vmm.JailDir + "/mode")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	switch string(mode) {
	case "dies":
		fmt.Fprintln(os.Stderr, "the floor is wet")
		return 3
	case "hangs":
		time.Sleep(time.Hour)
	}
	l, err := net.Listen("unix", vmm.JailDir+"/"+apiSocket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	conn, err := l.Accept()
	if err != nil {
		return 2
	}
	for r := bufio.NewReader(conn); ; {
		request, err := http.ReadRequest(r)
		if err != nil {
			return 0
		}
		io.Copy(io.Discard, request.Body)
		switch {
		case string(mode) == "refuses" && request.URL.Path == "/boot-source":
			io.WriteString(conn, "HTTP/1.1 400 \r\nContent-Length: 36\r\n\r\n{\"fault_message\": \"not with me, no\"}")
		case string(mode) == "dies later" && request.URL.Path == "/entropy":
			fmt.Fprintln(os.Stderr, "out of memory")
			return 4
		case string(mode) == "mute" && request.URL.Path == "/vsock":
			time.Sleep(time.Hour)
		default:
			io.WriteString(conn, "HTTP/1.1 204 \r\n\r\n")
		}
	}
}

// TestFaults: whatever becomes of a Firecracker, the start says what and leaves nothing.
func TestFaults(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(t.TempDir(), "vmlinux")
	if err := os.WriteFile(kernel, []byte("\x7fELF and so on"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		mode string
		is   func(error) bool
		want []string
	}{
		{"dies", errdefs.IsFailedPrecondition, []string{"status 3", "the floor is wet"}},
		{"dies later", errdefs.IsFailedPrecondition, []string{"status 4", "out of memory"}},
		{"hangs", isDeadline, nil},
		{"mute", isDeadline, nil},
		{"refuses", func(err error) bool { return err != nil }, []string{"/boot-source", "status 400", "not with me, no"}},
		{"unfiltered", errdefs.IsFailedPrecondition, []string{"without a filter", filterFile}},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "mode"), []byte(tt.mode), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(dir, 2_000_001, 2_000_001); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), map[bool]time.Duration{true: time.Second, false: time.Minute}[tt.want == nil])
			defer cancel()
			var pid int
			_, err := Driver{}.Start(ctx, hypervisor.Config{
				ID: "x", Binary: self, Accel: hypervisor.KVM, Kernel: kernel, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory}, RunDir: dir,
				User:    &hypervisor.User{UID: 2_000_001, GID: 2_000_001},
				Started: func(p int) error { pid = p; return nil },
			})
			if !tt.is(err) {
				t.Errorf("start: %v", err)
			}
			for _, want := range tt.want {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("start: %v, want %q in it", err, want)
				}
			}
			if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
				t.Errorf("process %d: %v", pid, err)
			}
		})
	}
	t.Run("socket in the way", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, logPipe), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Driver{}.Start(t.Context(), hypervisor.Config{
			ID: "x", Binary: self, Accel: hypervisor.KVM, Kernel: kernel, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory}, RunDir: dir,
		})
		if !errors.Is(err, os.ErrExist) {
			t.Errorf("start: %v", err)
		}
	})
	t.Run("not a vmlinux", func(t *testing.T) {
		bz := filepath.Join(t.TempDir(), "vmlinuz")
		if err := os.WriteFile(bz, []byte("MZ and so on"), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := Driver{}.Start(t.Context(), hypervisor.Config{
			ID: "x", Binary: self, Accel: hypervisor.KVM, Kernel: bz, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory}, RunDir: t.TempDir(),
		})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "vmlinux") {
			t.Errorf("a bzImage: %v", err)
		}
	})
}

func isDeadline(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
