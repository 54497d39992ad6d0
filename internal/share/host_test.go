package share_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	guest "github.com/pistis-run/pistis/internal/agent/share"
	"github.com/pistis-run/pistis/internal/share"
)

// The test binary is the server, and the guest, too: a process that serves its own mount may wait for itself.
const (
	serverArg = "share-server"
	guestArg  = "guest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serverArg {
		os.Exit(share.Main(os.Stderr))
	}
	if len(os.Args) == 4 && os.Args[1] == guestArg {
		os.Exit(relay(os.Args[2], os.Args[3] == "file"))
	}
	os.Exit(m.Run())
}

// relay mounts what is served over descriptor 3, says so, and relays until its standard input ends and it has unmounted.
func relay(point string, file bool) int {
	conn, err := net.FileConn(os.NewFile(3, "stream"))
	if err != nil {
		panic(err)
	}
	m, err := guest.New(point, file)
	if err != nil {
		panic(err)
	}
	fmt.Println("mounted")
	unmounted := make(chan error, 1)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		err := m.Unmount()
		m.Close() // a mount namespace that was just made elsewhere may have a copy of it
		unmounted <- err
	}()
	err = m.Relay(conn)
	err = errors.Join(err, <-unmounted, m.Remove())
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return 1
	}
	return 0
}

func startHost(t *testing.T) *share.Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a share server makes mounts: it needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("SKIPPED: this kernel has no FUSE")
	}
	h, err := share.Start(t.Context(), []string{"/proc/self/exe", serverArg}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// mount serves a share and mounts it as a guest would, on this machine.
func mount(t *testing.T, h *share.Host, s share.Share) (string, *share.Served) {
	t.Helper()
	served, err := h.Serve(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	point := filepath.Join(t.TempDir(), "mnt")
	stream, err := served.Stream.File()
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	kind := "directory"
	if served.File {
		kind = "file"
	}
	cmd := exec.Command("/proc/self/exe", guestArg, point, kind)
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{stream}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if err := served.Close(); err != nil {
			t.Error(err)
		}
	})
	return point, served
}

func TestHost(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	mnt, _ := mount(t, h, share.Share{Path: dir, Valid: time.Second})
	if b, err := os.ReadFile(filepath.Join(mnt, "a")); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	file, _ := mount(t, h, share.Share{Path: filepath.Join(dir, "a")})
	if b, err := os.ReadFile(file); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
}
