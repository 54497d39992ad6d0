package hypervisortest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/transport"
)

// direct: streams that may have a connection of their own carry bytes as the others do.
func (s *suite) direct(t *testing.T, v hypervisor.VM) {
	conn, err := v.Dial(t.Context(), transport.DirectPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 1 << 20
	_, err = conn.Write(append([]byte(fmt.Sprintf("take %d\n", size)), make([]byte, size)...))
	if answer, readErr := io.ReadAll(conn); string(answer) != fmt.Sprintf("ok %d\n", size) {
		t.Errorf("direct stream: %q, %v, %v", answer, err, readErr)
	}
}

func (s *suite) halfClose(t *testing.T, v hypervisor.VM) {
	conn, err := v.Dial(t.Context(), port)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 1 << 20
	if _, err := conn.Write(append([]byte("count\n"), make([]byte, size)...)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if want := fmt.Sprintf("ok %d\n", size); err != nil || string(got) != want {
		t.Errorf("after the end of writing the guest answers %q, %v, want %q", got, err, want)
	}
}

func (s *suite) manyStreams(t *testing.T, v hypervisor.VM) {
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := tell(t, v, "version"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func (s *suite) refusedPort(t *testing.T, v hypervisor.VM) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := v.Dial(ctx, port+1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial of a port where nobody listens: %v", err)
	}
}
