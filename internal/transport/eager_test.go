package transport

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// eagerPair is a pair of sockets, the first of which is eager.
func eagerPair(t *testing.T, most int) (*Eager, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	other := os.NewFile(uintptr(fds[1]), "other")
	e, err := NewEagerness(most).Adopt(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		e.Close()
		other.Close()
	})
	return e, other
}

// TestEager: what is written is read, whether readers may wait in the kernel or not, and after they have given that up.
func TestEager(t *testing.T) {
	for _, most := range []int{0, 2} {
		e, other := eagerPair(t, most)
		go func() {
			for i := range byte(3) {
				other.Write([]byte{i})
				time.Sleep(time.Duration(i) * 2 * eagerness) // the later ones find a reader that has parked
			}
			io.CopyN(other, other, 1<<20)
			other.Close()
		}()
		for i := range byte(3) {
			b := make([]byte, 1)
			if n, err := e.Read(b); n != 1 || err != nil || b[0] != i {
				t.Fatalf("read %d, %v: %v", n, err, b)
			}
		}
		large := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		wrote := make(chan error, 1)
		go func() {
			_, err := e.Write(large)
			wrote <- err
		}()
		back, err := io.ReadAll(e)
		if err := errors.Join(err, <-wrote); err != nil || !bytes.Equal(back, large) {
			t.Errorf("%d of %d bytes came back: %v", len(back), len(large), err)
		}
	}
}

// TestEagerClose: who waits returns, and the other side sees the end.
func TestEagerClose(t *testing.T) {
	for _, wait := range []time.Duration{0, 3 * eagerness} {
		for _, writes := range []bool{false, true} {
			e, other := eagerPair(t, 2)
			ended := make(chan error, 1)
			go func() {
				call := e.Read
				if writes {
					call = e.Write
				}
				_, err := call(make([]byte, 1<<22))
				ended <- err
			}()
			time.Sleep(wait)
			e.Close()
			if err := <-ended; !errors.Is(err, os.ErrClosed) {
				t.Errorf("waited %s, writes %v: %v", wait, writes, err)
			}
			if _, err := io.Copy(io.Discard, other); err != nil {
				t.Error(err)
			}
			if _, err := e.Read(nil); !errors.Is(err, os.ErrClosed) {
				t.Errorf("read after the end: %v", err)
			}
		}
	}
}

// TestEagerCollects: garbage is collected while a reader waits in the kernel, which the runtime does not know.
func TestEagerCollects(t *testing.T) {
	e, other := eagerPair(t, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, e)
	}()
	for range 50 {
		other.Write([]byte("x"))
		runtime.GC()
	}
	other.Close()
	<-done
}
