package kvmprobe

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu"
)

func TestProbeCache(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dir", "probe.json")
	want := result{Key: key{BootID: "b", User: &hypervisor.User{UID: 1}}, Reason: "r"}
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
		{"slow", maxSilence - time.Second, 5, 0, ""},
		{"silent", maxSilence + time.Second, 5, 0, "silent for 15s"},
		{"crawling", time.Second, 0, 0, "not up after 1m40s"},
		{"ended", time.Second, 0, 3, guestEnded},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, ended := newNeedle(answer), make(chan struct{})
				ctx, cancel := context.WithCancel(t.Context())
				var guest sync.WaitGroup
				defer guest.Wait()
				guest.Go(func() {
					for line := 1; ctx.Err() == nil; line++ {
						time.Sleep(c.every)
						text := "a line\n"
						if line == c.up {
							text = answer
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

// fakeDriver starts VMs that say something and, unless they hang, end.
type fakeDriver struct {
	says   string
	hangs  bool
	fails  error
	starts []hypervisor.Config
}

func (d *fakeDriver) Name() string                                    { return "fake" }
func (d *fakeDriver) Version(context.Context, string) (string, error) { return "1", nil }
func (d *fakeDriver) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{ELFKernel: true}
}

func (d *fakeDriver) Start(_ context.Context, cfg hypervisor.Config) (hypervisor.VM, error) {
	d.starts = append(d.starts, cfg)
	if d.fails != nil {
		return nil, d.fails
	}
	v := &fakeVM{done: make(chan struct{})}
	_, _ = io.WriteString(cfg.Console, d.says)
	if !d.hangs {
		_ = v.Kill()
	}
	return v, nil
}

type fakeVM struct{ done chan struct{} }

func (*fakeVM) PID() int                                       { return 1 }
func (*fakeVM) Dial(context.Context, uint32) (net.Conn, error) { return nil, errors.ErrUnsupported }
func (*fakeVM) Shutdown(context.Context) error                 { return nil }
func (v *fakeVM) Done() <-chan struct{}                        { return v.done }
func (*fakeVM) Err() error                                     { return errors.New("it ended") }

func (v *fakeVM) Kill() error {
	select {
	case <-v.done:
	default:
		close(v.done)
	}
	return nil
}

// TestRun: whichever VMM there is tells, and its answer is kept.
func TestRun(t *testing.T) {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("SKIPPED: this host has no /dev/kvm")
	}
	dir := t.TempDir()
	for _, name := range []string{"vmm", "kernel", "initrd"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		driver fakeDriver
		usable bool
		reason string
	}{
		"boots":          {fakeDriver{says: "hello\n" + answer + "\n", hangs: true}, true, "a guest of fake booted"},
		"ends":           {fakeDriver{says: "hello"}, false, "it ended"},
		"hangs":          {fakeDriver{hangs: true}, false, "hangs"},
		"does not start": {fakeDriver{fails: errors.New("no such instruction")}, false, "no such instruction"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := Config{
					Driver: &tt.driver, Binary: filepath.Join(dir, "vmm"), Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"),
					Vmlinux: "/vmlinux", CacheDir: t.TempDir(),
				}
				for range 2 {
					if usable, reason, err := Run(t.Context(), cfg); err != nil || usable != tt.usable || !strings.Contains(reason, tt.reason) {
						t.Errorf("got %t, %q, %v", usable, reason, err)
					}
				}
				if len(tt.driver.starts) != 1 {
					t.Fatalf("%d guests were started", len(tt.driver.starts))
				}
				started := tt.driver.starts[0]
				if _, err := os.Stat(started.RunDir); started.Kernel != "/vmlinux" || started.RunDir == "" || !os.IsNotExist(err) {
					t.Errorf("started %+v; its directory: %v", started, err)
				}
			})
		})
	}
}

// TestRealGuest: whatever the host's KVM is worth, the answer comes in bounded time and is remembered.
func TestRealGuest(t *testing.T) {
	guest := os.Getenv("PISTIS_GUEST")
	if guest == "" {
		t.Skip("SKIPPED, no real guest: PISTIS_GUEST names none")
	}
	program, _ := config.QEMU()
	binary, err := exec.LookPath(program)
	if err != nil {
		t.Skipf("SKIPPED, no real guest: %v", err)
	}
	cfg := Config{Driver: qemu.Driver{}, Binary: binary, Kernel: filepath.Join(guest, "vmlinuz"), Initrd: filepath.Join(guest, "initrd"), CacheDir: t.TempDir()}
	if os.Getuid() == 0 {
		cfg.User = &hypervisor.User{UID: 2_000_001, GID: 2_000_001}
	}
	usable, reason, err := Run(t.Context(), cfg)
	if err != nil || reason == "" {
		t.Fatalf("probe: %v, %q, %v", usable, reason, err)
	}
	t.Logf("usable: %v, %s", usable, reason)
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return
	}
	again, againReason, err := Run(t.Context(), cfg)
	if err != nil || again != usable || againReason != reason {
		t.Errorf("remembered: %v, %q, %v", again, againReason, err)
	}
}
