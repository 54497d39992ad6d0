package hypervisortest

import (
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

func fakeConfig() hypervisor.Config {
	return hypervisor.Config{ID: "fake", Kernel: "none", Accel: hypervisor.TCG, Size: hypervisor.Size{VCPUs: 1}}
}

func TestFakeServes(t *testing.T) {
	defer noLeaks(t)()
	driver := &Fake{Serve: func(port uint32, conn net.Conn) {
		defer conn.Close()
		io.Copy(conn, conn)
	}}
	v, err := driver.Start(t.Context(), fakeConfig())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := v.Dial(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "hello")
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("echo %q, %v", got, err)
	}
	idle, err := v.Dial(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	if err := syscall.Kill(v.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-v.Done()
	if got, _ := io.ReadAll(idle); len(got) > 0 {
		t.Errorf("read %q", got)
	}
	if v.Err() == nil || errors.Is(v.Err(), hypervisor.ErrPoweredOff) {
		t.Errorf("killed: %v", v.Err())
	}
	if _, err := v.Dial(t.Context(), 7); !errdefs.IsUnavailable(err) {
		t.Errorf("dial after the end: %v", err)
	}
}

func TestFakeFaults(t *testing.T) {
	defer noLeaks(t)()
	if _, err := (&Fake{Fault: DiesAtOnce}).Start(t.Context(), fakeConfig()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("dies at once: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := (&Fake{Fault: StartHangs}).Start(ctx, fakeConfig()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start hangs: %v", err)
	}
	v, err := (&Fake{Fault: NeverAnswers, NoDisks: true}).Start(t.Context(), fakeConfig())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := v.(hypervisor.DiskPlugger); ok {
		t.Error("a VM without disks plugs disks")
	}
	if _, err := v.Dial(ctx, 7); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("never answers: %v", err)
	}
	if err := v.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	<-v.Done()
	v, err = (&Fake{}).Start(t.Context(), fakeConfig())
	if err != nil {
		t.Fatal(err)
	}
	if err := v.(*FakeVM).PowerOff(); err != nil {
		t.Fatal(err)
	}
	<-v.Done()
	if !errors.Is(v.Err(), hypervisor.ErrPoweredOff) {
		t.Errorf("powered off: %v", v.Err())
	}
}
