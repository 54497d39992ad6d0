package vmm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// serveAPI answers each connection's requests with the answers in turn.
func serveAPI(t *testing.T, answers ...string) *API {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		buf, oob := make([]byte, 4096), make([]byte, 256)
		for _, answer := range answers {
			if _, _, _, _, err := conn.ReadMsgUnix(buf, oob); err != nil {
				return
			}
			io.WriteString(conn, answer)
		}
		if len(answers) == 0 {
			io.Copy(io.Discard, conn)
		}
	}()
	conn, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	api := NewAPI("vmm", conn)
	t.Cleanup(func() { api.Close() })
	return api
}

func TestAPI(t *testing.T) {
	api := serveAPI(t,
		"HTTP/1.1 204 \r\nServer: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\": 1}",
		"HTTP/1.1 400 \r\nContent-Length: 30\r\n\r\n{\"fault_message\": \"no\\n\\nway\"}",
		"HTTP/1.1 500 \r\nContent-Length: 13\r\n\r\n[\"one\",\"two\"]")
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if body, err := api.Do(t.Context(), "PUT", "/x", map[string]int{"a": 1}, f); err != nil || len(body) != 0 {
		t.Errorf("no content: %q, %v", body, err)
	}
	if body, err := api.Do(t.Context(), "GET", "/x", nil); err != nil || string(body) != `{"a": 1}` {
		t.Errorf("content: %q, %v", body, err)
	}
	for _, want := range []string{"status 400: no way", "status 500: one: two"} {
		_, err := api.Do(t.Context(), "GET", "/x", nil)
		var refused *APIError
		if !errors.As(err, &refused) || refused.Error() != want {
			t.Errorf("refusal: %v, want %q", err, want)
		}
	}
	if _, err := api.Do(t.Context(), "GET", "/x", nil); !errdefs.IsUnavailable(err) {
		t.Errorf("after the end: %v", err)
	}
}

func TestAPICutOff(t *testing.T) {
	api := serveAPI(t)
	api.grace = 0
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := api.Do(ctx, "GET", "/x", nil); !errors.Is(err, context.Canceled) || !Undone(err) {
		t.Errorf("canceled before: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	go cancel()
	if _, err := api.Do(ctx, "GET", "/x", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled meanwhile: %v", err)
	}
}

// TestAPIAnsweredAndCutOff: a request that is cut off when its answer is there does not cut off the next.
func TestAPIAnsweredAndCutOff(t *testing.T) {
	const answer = "HTTP/1.1 204 \r\n\r\n"
	for range 200 {
		api := serveAPI(t, answer, answer)
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if _, err := api.Do(ctx, "GET", "/x", nil); err != nil {
			continue // it was cut off before
		}
		if _, err := api.Do(t.Context(), "GET", "/x", nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAPIGivenUp: a caller that gives up while its request is answered does not take the connection from the next.
func TestAPIGivenUp(t *testing.T) {
	const answer = "HTTP/1.1 204 \r\n\r\n"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	api := NewAPI("vmm", conn)
	defer api.Close()
	vmm, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer vmm.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		buf := make([]byte, 4096)
		vmm.Read(buf)
		cancel()
		vmm.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		vmm.Read(buf) // the end of a connection that is cut off
		vmm.SetReadDeadline(time.Time{})
		io.WriteString(vmm, answer)
		vmm.Read(buf)
		io.WriteString(vmm, answer)
	}()
	if _, err := api.Do(ctx, "PUT", "/x", nil); err != nil {
		t.Errorf("answered after its caller's time: %v", err)
	}
	if _, err := api.Do(t.Context(), "GET", "/x", nil); err != nil {
		t.Errorf("the next: %v", err)
	}
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 204 \r\nServer: x\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"a\": 1}"))
	f.Add([]byte("HTTP/1.1 400 \r\nContent-Length: 99999999\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		status, body, err := readResponse(bufio.NewReaderSize(bytes.NewReader(data), maxHead))
		if err != nil {
			return
		}
		if status < 100 || status > 599 || len(body) > len(data) {
			t.Errorf("status %d, %d bytes of %d", status, len(body), len(data))
		}
		if text := message(body); len(text) > maxMessage+3 || strings.ContainsAny(text, "\r\n") {
			t.Errorf("message %q", text)
		}
	})
}
