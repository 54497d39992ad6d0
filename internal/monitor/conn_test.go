package monitor

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func pair(t testing.TB) (a, b Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = Conn{conn.(*net.UnixConn)}
		t.Cleanup(func() { conn.Close() })
	}
	return ends[0], ends[1]
}

func TestConn(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := Request{Version: 1, Verb: Verb(strings.Repeat("x", 1<<20))} // more than a socket's buffer
	sent := make(chan error, 1)
	go func() { sent <- errors.Join(a.Send(want, w), w.Close()) }()
	var got Request
	files, err := b.Receive(&got)
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	if got.Verb != want.Verb || len(files) != 1 {
		t.Fatalf("%d bytes and %d descriptors arrived", len(got.Verb), len(files))
	}
	files[0].WriteString("through")
	files[0].Close()
	if text, err := io.ReadAll(r); string(text) != "through" || err != nil {
		t.Errorf("the descriptor gave %q, %v", text, err)
	}
	if err := a.Send(Request{Verb: Verb(strings.Repeat("x", maxMessage))}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a message that is too long: %v", err)
	}
	a.Close()
	if _, err := b.Receive(&got); !errors.Is(err, io.EOF) {
		t.Errorf("end = %v", err)
	}
}

// TestTooManyDescriptors leaves none of them open.
func TestTooManyDescriptors(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := a.Send(Request{}, w, w, w, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var got Request
	if files, err := b.Receive(&got); !errdefs.IsInvalidArgument(err) || files != nil {
		t.Errorf("received %d descriptors, %v", len(files), err)
	}
	if text, err := io.ReadAll(r); len(text) > 0 || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	if NewError(nil) != nil {
		t.Error("nil is an error")
	}
	for _, c := range classes() {
		cause := errors.Join(errors.New("what happened"), c.err)
		if err := NewError(cause); !errors.Is(err, c.err) || err.Error() != cause.Error() {
			t.Errorf("%s arrives as %v", c.name, err)
		}
	}
	if err := NewError(errors.New("x")); !errdefs.IsInternal(err) {
		t.Errorf("without a class: %v", err)
	}
	if err := (&Error{Class: "New", Message: "x"}); !errdefs.IsUnknown(err) || errors.Is(err, context.Canceled) {
		t.Errorf("of an unknown class: %v", err)
	}
}

// FuzzReceive gives a monitor anything.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x00\x00\x3a" + `{"version":1,"verb":"wait","id":{"Container":"c"},"args":1}`))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Add([]byte("\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, b := pair(t)
		go func() {
			a.Write(data)
			a.Close()
		}()
		var req Request
		files, err := b.Receive(&req)
		if err == nil && len(data) < headerSize+2 {
			t.Error("less than a message was one")
		}
		if len(files) > 0 {
			t.Error("descriptors out of nothing")
		}
	})
}
