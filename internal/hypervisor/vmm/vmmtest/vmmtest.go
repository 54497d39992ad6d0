package vmmtest

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

// modeFile says in a VM's run directory how its VMM fails.
const modeFile = "mode"

// vmmID is whom it runs as.
const vmmID = 2_000_001

// Fake is a VMM.
type Fake struct {
	// Version is what it says to --version.
	Version string
	// Flag is an argument that it is started with to run a VM.
	Flag string
	// Listen is where its control socket comes from.
	Listen func() (net.Listener, error)
	// Refuses, Dies and Hangs are paths of requests at which those that fail later do so; an empty one is none. Refusal is the
	// body of a refusal.
	Refuses, Refusal, Dies, Hangs string
}

// Main runs the tests, or plays the VMM.
func (f Fake) Main(m *testing.M) {
	switch {
	case slices.Contains(os.Args, "--version"):
		fmt.Println(f.Version)
		os.Exit(0)
	case slices.Contains(os.Args, f.Flag):
		os.Exit(f.play())
	}
	os.Exit(m.Run())
}

func (f Fake) play() int {
	mode, err := os.ReadFile(filepath.Join(vmm.JailDir, modeFile))
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
	l, err := f.Listen()
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
		switch string(mode) + " " + request.URL.Path {
		case "refuses " + f.Refuses:
			fmt.Fprintf(conn, "HTTP/1.1 400 \r\nContent-Length: %d\r\n\r\n%s", len(f.Refusal), f.Refusal)
		case "dies later " + f.Dies:
			fmt.Fprintln(os.Stderr, "out of memory")
			return 4
		case "hangs later " + f.Hangs:
			time.Sleep(time.Hour)
		default:
			io.WriteString(conn, "HTTP/1.1 204 \r\n\r\n")
		}
	}
}

// Faults: whatever becomes of a VMM, the driver's start says what and leaves nothing. cfg is one for a VM that could start. The
// driver says refusal of a VMM that refuses, and unfiltered of one that works, but without a filter of its own.
func (f Fake) Faults(t *testing.T, driver hypervisor.Driver, cfg hypervisor.Config, refusal, unfiltered []string) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	for _, fault := range []struct {
		mode string
		at   string
		want []string // none is that the caller's time ends
	}{
		{"dies", "/", []string{"status 3", "the floor is wet"}},
		{"dies later", f.Dies, []string{"status 4", "out of memory"}},
		{"hangs", "/", nil},
		{"hangs later", f.Hangs, nil},
		{"refuses", f.Refuses, append([]string{f.Refuses, "status 400"}, refusal...)},
		{"unfiltered", "/", append([]string{"without a filter"}, unfiltered...)},
	} {
		if fault.at != "" {
			t.Run(fault.mode, func(t *testing.T) { fails(t, driver, cfg, fault.mode, fault.want) })
		}
	}
}

func fails(t *testing.T, driver hypervisor.Driver, cfg hypervisor.Config, mode string, want []string) {
	t.Parallel() // most of the time somebody is waited for
	cfg.RunDir = t.TempDir()
	if err := os.WriteFile(filepath.Join(cfg.RunDir, modeFile), []byte(mode), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(cfg.RunDir, vmmID, vmmID); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	patience := time.Minute
	if want == nil {
		patience = time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var pid int
	cfg.Binary, cfg.User = self, &hypervisor.User{UID: vmmID, GID: vmmID}
	cfg.Started = func(p int) error { pid = p; return nil }
	_, err = driver.Start(ctx, cfg)
	if want == nil && !errors.Is(err, context.DeadlineExceeded) || want != nil && !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("start: %v", err)
	}
	for _, text := range want {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("start: %v, want %q in it", err, text)
		}
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v", pid, err)
	}
	if err := os.RemoveAll(cfg.RunDir); err != nil {
		t.Errorf("something is left that is in use: %v", err)
	}
}

// Refusals: a driver's check refuses what such a VMM cannot have, as more processors than most.
func Refusals(t *testing.T, check func(hypervisor.Config) error, most int) {
	good := hypervisor.Config{ID: "x", Accel: hypervisor.KVM, Kernel: "/k", Size: hypervisor.Size{VCPUs: most, Memory: 1 << 30}, RunDir: "/r"}
	if err := check(good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*hypervisor.Config){
		"emulation":    func(c *hypervisor.Config) { c.Accel = hypervisor.TCG },
		"processors":   func(c *hypervisor.Config) { c.VCPUs = most + 1 },
		"directory":    func(c *hypervisor.Config) { c.RunDir = "" },
		"machine type": func(c *hypervisor.Config) { c.Machine = "q35" },
		"disks":        func(c *hypervisor.Config) { c.Disks = make([]hypervisor.Disk, 29) },
	} {
		c := good
		change(&c)
		if err := check(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
