package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/vm"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

// TestLyingGuestKeepsNoWaiter: a guest that says its connection was lost, and lives on, keeps the wait for a process
// only for as long as that is not deleted.
func TestLyingGuestKeepsNoWaiter(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := vm.Boot(t.Context(), vm.Request{
		ID: "pod1", Driver: &vmtest.Driver{Agent: &vmtest.Agent{}}, RunDir: filepath.Join(t.TempDir(), "vm"),
		ConsoleLog: filepath.Join(t.TempDir(), "console.log"),
		Options:    &shimv1.SandboxOptions{Vm: &shimv1.VMOptions{Kernel: kernel, Acceleration: "tcg", Vcpus: 1, MemoryBytes: 128 << 20}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Kill(context.Background(), errors.New("end of test"))
	deleted, forget := context.WithCancel(t.Context())
	forget()
	if _, err := New(Options{ID: "pod1"}).lostExit(deleted, v, errdefs.ErrUnavailable); !errors.Is(err, context.Canceled) {
		t.Errorf("wait for a deleted process: %v", err)
	}
}

// TestExecsAreBounded: what the guest never ends is not collected without end.
func TestExecsAreBounded(t *testing.T) {
	c := &container{process: newProcess(task.ID{Container: "c"}, false, stdioPaths{}), execs: map[string]*process{}}
	add := func(i int) error {
		return c.addExec(newProcess(task.ID{Container: "c", Exec: fmt.Sprint(i)}, false, stdioPaths{}))
	}
	for i := range maxExecs {
		if err := add(i); err != nil {
			t.Fatal(err)
		}
	}
	if err := add(maxExecs); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v", err)
	}
	c.removeExec("0")
	if err := add(maxExecs); err != nil {
		t.Error(err)
	}
}

// scarce is a listener of a process that has no free descriptor for a while.
type scarce struct {
	net.Listener
	failures int
}

func (l *scarce) Accept() (net.Conn, error) {
	if l.failures--; l.failures >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}
	}
	return nil, net.ErrClosed
}

// TestStreamsOutliveScarcity: the want of descriptors must not end the shim, and with it the pod.
func TestStreamsOutliveScarcity(t *testing.T) {
	l := &scarce{failures: 2}
	if err := New(Options{ID: "pod1"}).ServeStreams(t.Context(), l); err != nil || l.failures >= 0 {
		t.Errorf("serve: %v with %d failures to come", err, l.failures)
	}
}
