package qemu

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
)

// realGuest is a VM that boots testinit, or skips the test. Its QEMU runs as nobody in particular where the
// test may choose.
func realGuest(t *testing.T) hypervisor.Config {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED, no real guest: short tests were asked for")
	}
	if _, err := (Driver{}).Version(t.Context(), ""); err != nil {
		t.Skipf("SKIPPED, no real guest: %v", err)
	}
	guest := hypervisortest.BuildGuest(t)
	cfg := hypervisor.Config{
		ID: "test", Accel: hypervisortest.Acceleration(), Kernel: guest.Kernel, Initrd: guest.Initrd, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory},
	}
	if os.Getuid() == 0 {
		cfg.User = &hypervisor.User{UID: 2_000_001, GID: 2_000_001}
	}
	return cfg
}

// TestContract boots real guests. A minute of file work, which an emulated cmpxchg16b does not survive, is
// asked for with PISTIS_LONG=1.
func TestContract(t *testing.T) {
	config := realGuest(t)
	work := 3 * time.Second
	if os.Getenv("PISTIS_LONG") != "" {
		work = time.Minute
	}
	hypervisortest.Run(t, Driver{}, hypervisortest.Options{Config: config, Work: work})
}

// TestGuestSees checks in a guest what only this driver promises: the masked instruction, the cards, and
// that its process is confined.
func TestGuestSees(t *testing.T) {
	cfg := realGuest(t)
	mac := net.HardwareAddr{2, 0, 0, 0x11, 0x22, 0x33}
	if os.Getuid() == 0 {
		cfg.NICs = []hypervisor.NIC{{ID: "eth0", Tap: openTap(t), MAC: mac, MTU: 1400}}
	} else {
		t.Log("SKIPPED for network cards: needs root")
	}
	v, err := Driver{}.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		v.Kill()
		<-v.Done()
	}()
	if flags := strings.Fields(ask(t, v, "cpuflags")); cfg.Accel == hypervisor.KVM {
		t.Log("under KVM the processor is the host's")
	} else if len(flags) < 20 {
		t.Errorf("flags: %q", flags)
	} else {
		for _, flag := range flags {
			if flag == "cx16" {
				t.Error("the guest sees cmpxchg16b, which QEMU emulates wrongly")
			}
		}
	}
	if got, want := ask(t, v, "nics"), fmt.Sprintf("%s/%d", mac, 1400); len(cfg.NICs) > 0 && got != want {
		t.Errorf("network cards %q, want %q", got, want)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.PID()))
	if err != nil {
		t.Fatal(err)
	}
	wants := []string{"Seccomp:\t2", "NoNewPrivs:\t1"}
	if cfg.User != nil {
		wants = append(wants, "Uid:\t2000001\t2000001\t2000001\t2000001", "CapEff:\t0000000000000000", "CapPrm:\t0000000000000000")
	}
	for _, want := range wants {
		if !bytes.Contains(status, []byte(want)) {
			t.Errorf("QEMU's status lacks %q:\n%s", want, status)
		}
	}
}

func ask(t *testing.T, v hypervisor.VM, word string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := v.Dial(ctx, 1024)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(conn, word+"\n")
	answer, err := io.ReadAll(conn)
	if err != nil || !bytes.HasPrefix(answer, []byte("ok")) {
		t.Fatalf("%s: %q, %v", word, answer, err)
	}
	return strings.TrimSpace(string(answer[2:]))
}

// openTap makes a tap that goes with its descriptor.
func openTap(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	f := os.NewFile(uintptr(fd), "tap")
	t.Cleanup(func() { f.Close() })
	request, err := unix.NewIfreq("pistst%d")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestProbeKVM: whatever the host's KVM is worth, the answer comes in bounded time and is remembered.
func TestProbeKVM(t *testing.T) {
	cfg := realGuest(t)
	probe := ProbeConfig{Kernel: cfg.Kernel, Initrd: cfg.Initrd, CacheDir: t.TempDir()}
	usable, reason, err := ProbeKVM(t.Context(), probe)
	if err != nil || reason == "" {
		t.Fatalf("probe: %v, %q, %v", usable, reason, err)
	}
	t.Logf("usable: %v, %s", usable, reason)
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return
	}
	again, againReason, err := ProbeKVM(t.Context(), probe)
	if err != nil || again != usable || againReason != reason {
		t.Errorf("remembered: %v, %q, %v", again, againReason, err)
	}
}
