package transport

import (
	"fmt"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// TestHybridBeside: DirectPort has connections of its own, which can be handed over, and needs no pipe; other ports do.
func TestHybridBeside(t *testing.T) {
	h := Hybrid{Path: filepath.Join(t.TempDir(), "vsock")}
	l, err := net.Listen("unix", h.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pipe := NewClient(h.Pipe())
	pipe.Close()
	dial := h.Beside(pipe)
	asked := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line := make([]byte, len(fmt.Sprintf("CONNECT %d\n", DirectPort)))
		_, _ = io.ReadFull(conn, line)
		asked <- string(line)
		_, _ = io.WriteString(conn, "OK 5\n")
	}()
	conn, err := dial(t.Context(), DirectPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got, want := <-asked, fmt.Sprintf("CONNECT %d\n", DirectPort); got != want {
		t.Errorf("the VMM is asked %q, want %q", got, want)
	}
	if _, ok := conn.(syscall.Conn); !ok {
		t.Errorf("a %T is no socket of its own", conn)
	}
	if _, err := dial(t.Context(), 7); !errdefs.IsUnavailable(err) {
		t.Errorf("another port, without the pipe: %v", err)
	}
}
