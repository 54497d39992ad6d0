package transport

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReadWithin: who waits for a limited time gets what there is, the end of that time, or that of the descriptor, whether or not
// it may keep a processor.
func TestReadWithin(t *testing.T) {
	for _, eager := range []int{0, 1} {
		t.Run(fmt.Sprint(eager), func(t *testing.T) {
			var fds [2]int
			if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fds[1])
			e, err := NewEagerness(eager).Adopt(fds[0])
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			b := make([]byte, 8)
			if n, err := e.ReadWithin(b, time.Millisecond); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("of nothing: %d, %v", n, err)
			}
			if _, err := unix.Write(fds[1], []byte("abc")); err != nil {
				t.Fatal(err)
			}
			if n, err := e.ReadWithin(b, time.Hour); string(b[:n]) != "abc" || err != nil {
				t.Errorf("of what there is: %q, %v", b[:n], err)
			}
			closed := make(chan error)
			go func() { closed <- e.Close() }()
			if n, err := e.ReadWithin(b, time.Hour); n != 0 || !errors.Is(err, os.ErrClosed) {
				t.Errorf("of what is closed: %d, %v", n, err)
			}
			if err := <-closed; err != nil {
				t.Error(err)
			}
		})
	}
}
