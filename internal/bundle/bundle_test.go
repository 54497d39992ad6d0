package bundle

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCreateTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b")
	if _, err := Create(path); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("second Create = %v, want AlreadyExists", err)
	}
}

func TestSocketPathsFit(t *testing.T) {
	for _, n := range []int{1, 40, 86, 87, 88, 200} {
		d := Dir("/" + strings.Repeat("x", n-1))
		longest := filepath.Join(d.RunDir(), strings.Repeat("s", maxSocketName))
		if len(longest) > maxSocketPath {
			t.Errorf("bundle path of %d bytes: %s has %d bytes", n, longest, len(longest))
		}
		if _, err := net.ResolveUnixAddr("unix", longest); err != nil {
			t.Error(err)
		}
	}
	// The default layout needs no second directory.
	if d := Dir("/run/pistis/sandboxes/" + strings.Repeat("0", 64)); d.Sockets() != string(d) {
		t.Errorf("sockets of %s lie in %s", d, d.Sockets())
	}
}

func TestLock(t *testing.T) {
	d, err := Create(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	if locked, err := d.Locked(); locked || err != nil {
		t.Fatalf("fresh bundle: locked = %v, %v", locked, err)
	}
	f, err := d.TakeLock()
	if err != nil {
		t.Fatal(err)
	}
	if locked, err := d.Locked(); !locked || err != nil {
		t.Fatalf("held: locked = %v, %v", locked, err)
	}
	if _, err := d.TakeLock(); !errdefs.IsUnavailable(err) {
		t.Fatalf("second TakeLock = %v, want Unavailable", err)
	}
	f.Close()
	if locked, err := d.Locked(); locked || err != nil {
		t.Fatalf("released: locked = %v, %v", locked, err)
	}
}

func TestRecords(t *testing.T) {
	d := Dir(t.TempDir())
	if _, err := d.ReadVMM(); !errdefs.IsNotFound(err) {
		t.Fatalf("no record: %v, want NotFound", err)
	}
	want := Shim{Process: Process{PID: 7, StartTime: 9}, Cgroup: "pistis/x"}
	if err := d.WriteShim(want); err != nil {
		t.Fatal(err)
	}
	if got, err := d.ReadShim(); got != want || err != nil {
		t.Fatalf("ReadShim = %v, %v", got, err)
	}
	if err := os.WriteFile(d.VMMFile(), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadVMM(); !errdefs.IsDataLoss(err) {
		t.Fatalf("torn record: %v, want DataLoss", err)
	}
}

func TestProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := Process{PID: p.PID, StartTime: p.StartTime + 1}
	if err := other.Kill(t.Context()); err != nil {
		t.Errorf("killing a process that ended: %v", err)
	}
	h, err := p.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Wait(ctx); err == nil {
		t.Error("Wait returned nil while the process runs")
	}
	if err := p.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Open(); !errdefs.IsNotFound(err) {
		t.Errorf("Open of a dead process = %v, want NotFound", err)
	}
}

func TestCleanupKillsVMM(t *testing.T) {
	d, err := Create(filepath.Join(t.TempDir(), "b"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteVMM(p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := d.Cleanup(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the VMM was not killed")
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a) b) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 33 0 0"))
	f.Add([]byte("1 (a"))
	f.Fuzz(func(t *testing.T, data []byte) { parseStat(data) })
}

// TestLastWords: a log is cut anywhere, and what is shown of it is told in strings of gRPC.
func TestLastWords(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if LastWords(path) != "" {
		t.Error("no log has words")
	}
	if err := os.WriteFile(path, []byte("x"+strings.Repeat("é", maxWords)+"!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := LastWords(path), strings.Repeat("é", maxWords/2-1)+"!"; got != want {
		t.Errorf("%q", got)
	}
	if err := os.WriteFile(path, []byte("é"+strings.Repeat("x", maxWords-1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := LastWords(path), "?"+strings.Repeat("x", maxWords-1); got != want {
		t.Errorf("%q", got)
	}
}
