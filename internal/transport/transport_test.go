package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// pair connects a client with a server.
func pair(t *testing.T) (*Client, *Server) {
	t.Helper()
	host, guest := sockets(t)
	client := NewClient(host)
	t.Cleanup(func() { client.Close() })
	server, err := NewServer(t.Context(), guest)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	return client, server
}

// sockets returns the ends of a Unix socket pair.
func sockets(t *testing.T) (host, guest net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns[0], conns[1]
}

// connect returns both ends of one stream.
func connect(t *testing.T, c *Client, s *Server) (host, guest net.Conn) {
	t.Helper()
	l, err := s.Listen(7)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var wg sync.WaitGroup
	wg.Go(func() { guest, err = l.Accept() })
	host, dialErr := c.Dial(t.Context(), 7)
	wg.Wait()
	if err != nil || dialErr != nil {
		t.Fatal(err, dialErr)
	}
	return host, guest
}

func TestHalfClose(t *testing.T) {
	client, server := pair(t)
	host, guest := connect(t, client, server)
	request, answer := bytes.Repeat([]byte("abc"), 1<<18), bytes.Repeat([]byte("xyz"), 1<<18)
	var wg sync.WaitGroup
	wg.Go(func() {
		got, err := io.ReadAll(guest)
		if err != nil || !bytes.Equal(got, request) {
			t.Errorf("guest read %d bytes, %v", len(got), err)
		}
		guest.Write(answer)
		guest.Close()
	})
	host.Write(request)
	if err := host.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Write([]byte("more")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("write after CloseWrite: %v", err)
	}
	got, err := io.ReadAll(host)
	if err != nil || !bytes.Equal(got, answer) {
		t.Errorf("host read %d bytes, %v", len(got), err)
	}
	wg.Wait()
	host.Close()
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

// TestCloseStopsWriter: a writer whose peer has closed learns of it even while it blocks, in both directions,
// and what was written before the close can be read.
func TestCloseStopsWriter(t *testing.T) {
	for _, closer := range []string{"host", "guest"} {
		t.Run(closer, func(t *testing.T) {
			client, server := pair(t)
			host, guest := connect(t, client, server)
			a, b := host, guest
			if closer == "guest" {
				a, b = guest, host
			}
			a.Write([]byte("last words"))
			failed := make(chan error)
			go func() {
				for {
					if _, err := b.Write(make([]byte, 1<<16)); err != nil {
						failed <- err
						return
					}
				}
			}()
			a.Close()
			if err := <-failed; !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write to a closed stream: %v", err)
			}
			got, err := io.ReadAll(b)
			if err != nil || string(got) != "last words" {
				t.Errorf("read %q, %v", got, err)
			}
			b.Close()
			waitStreams(t, client, 1)
		})
	}
}

// waitStreams waits until so many streams are left, the notices among them.
func waitStreams(t *testing.T, c *Client, want int) {
	t.Helper()
	for c.links.session.NumStreams() != want {
		select {
		case <-t.Context().Done():
			t.Fatalf("%d streams are left", c.links.session.NumStreams())
		case <-time.After(time.Millisecond):
		}
	}
}

func TestCloseWakesReader(t *testing.T) {
	client, server := pair(t)
	host, _ := connect(t, client, server)
	woken := make(chan error)
	go func() {
		_, err := host.Read(make([]byte, 1))
		woken <- err
	}()
	host.Close()
	if err := <-woken; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read while closing: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	client, server := pair(t)
	host, _ := connect(t, client, server)
	host.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := host.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the deadline: %v", err)
	}
}

func TestManyStreams(t *testing.T) {
	client, server := pair(t)
	l, err := server.Listen(1)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				io.Copy(conn, conn)
				conn.Close()
			})
		}
	})
	var dials sync.WaitGroup
	for i := range 50 {
		dials.Go(func() {
			conn, err := client.Dial(t.Context(), 1)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			want := bytes.Repeat([]byte{byte(i)}, 10_000)
			conn.Write(want)
			conn.(interface{ CloseWrite() error }).CloseWrite()
			if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, want) {
				t.Errorf("stream %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	dials.Wait()
	waitStreams(t, client, 1)
	l.Close()
	wg.Wait()
}

// TestGuestGone: the end of the pipe is an error of reads, not EOF, and of dials.
func TestGuestGone(t *testing.T) {
	client, server := pair(t)
	host, _ := connect(t, client, server)
	server.Close()
	if _, err := io.ReadAll(host); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	if _, err := client.Dial(t.Context(), 7); !errdefs.IsUnavailable(err) {
		t.Errorf("dial: %v", err)
	}
}

func TestDialWaits(t *testing.T) {
	hostPipe, guestPipe := sockets(t)
	client := NewClient(hostPipe)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := client.Dial(ctx, 7); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("dial before the greeting: %v", err)
	}
	if err := client.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("ready before the greeting: %v", err)
	}
	server, err := NewServer(t.Context(), guestPipe)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := client.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Dial(ctx, 7); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errRefused) {
		t.Fatalf("dial where nobody listens: %v", err)
	}
	// A dial that started before Listen succeeds.
	dialled := make(chan error)
	go func() {
		_, err := client.Dial(t.Context(), 7)
		dialled <- err
	}()
	l, err := server.Listen(7)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := server.Listen(7); err == nil {
		t.Error("two listeners on one port")
	}
	if _, err := l.Accept(); err != nil {
		t.Fatal(err)
	}
	if err := <-dialled; err != nil {
		t.Fatal(err)
	}
}

func TestForeignGuest(t *testing.T) {
	hostPipe, guestPipe := sockets(t)
	client := NewClient(hostPipe)
	defer client.Close()
	guestPipe.Write([]byte("login: password"))
	if _, err := client.Dial(t.Context(), 7); err == nil || !strings.Contains(err.Error(), "greeting") {
		t.Errorf("dial: %v", err)
	}
}

// TestHostileGuest: frames that the protocol has no use for end the session and do no harm.
func TestHostileGuest(t *testing.T) {
	frames := map[string][]byte{
		"ping":   {0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1},
		"open":   {0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0},
		"window": {0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff},
		"type":   {0, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0},
	}
	for name, frame := range frames {
		t.Run(name, func(t *testing.T) {
			hostPipe, guestPipe := sockets(t)
			client := NewClient(hostPipe)
			defer client.Close()
			if err := greetHost(guestPipe); err != nil {
				t.Fatal(err)
			}
			guestPipe.Write(frame)
			io.Copy(io.Discard, guestPipe) // until the host hangs up
			if _, err := client.Dial(t.Context(), 7); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "multiplexed pipe") {
				t.Errorf("dial: %v", err)
			}
		})
	}
}

// TestDeafGuest: a guest that accepts no stream costs a bounded number of them, and dials do not pile up behind it.
func TestDeafGuest(t *testing.T) {
	hostPipe, guestPipe := sockets(t)
	client := NewClient(hostPipe)
	defer client.Close()
	if err := greetHost(guestPipe); err != nil {
		t.Fatal(err)
	}
	var deaf, dials sync.WaitGroup
	deaf.Go(func() { io.Copy(io.Discard, guestPipe) })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range maxStreams {
		dials.Go(func() { client.Dial(ctx, 7) })
	}
	<-client.ready
	waitStreams(t, client, maxStreams)
	cancel()
	dials.Wait()
	if _, err := client.Dial(t.Context(), 7); !errdefs.IsResourceExhausted(err) {
		t.Errorf("dial: %v, want ResourceExhausted", err)
	}
	client.Close()
	deaf.Wait()
}

func TestServerContext(t *testing.T) {
	_, guestPipe := sockets(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := NewServer(ctx, guestPipe); err == nil {
		t.Fatal("a server without a host")
	}
}

func TestHybrid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	tests := []struct{ name, answer, wantErr string }{
		{"accepted", "OK 1073741824\n", ""},
		{"nonsense", "HELLO\n", "unexpected answer"},
		{"endless", strings.Repeat("O", 1000), "not a line"},
		{"negative", "OK -1\n", "unexpected answer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var wg sync.WaitGroup
			wg.Go(func() {
				// The first attempt finds nobody behind the port.
				conn, _ := l.Accept()
				conn.Close()
				conn, _ = l.Accept()
				defer conn.Close()
				line := make([]byte, len("CONNECT 1024\n"))
				io.ReadFull(conn, line)
				if string(line) != "CONNECT 1024\n" {
					t.Errorf("request %q", line)
				}
				conn.Write([]byte(tt.answer + "hello"))
			})
			conn, err := Hybrid{Path: path}.Dial(t.Context(), 1024)
			wg.Wait()
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("error %v, want %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, ok := conn.(interface{ CloseWrite() error }); !ok {
				t.Error("no half close")
			}
			if got, err := io.ReadAll(conn); string(got) != "hello" {
				t.Errorf("the stream starts with %q, %v", got, err)
			}
		})
	}
}

// TestHybridPipe: streams over one connection that is made when it is needed.
func TestHybridPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vsock")
	client := NewClient(Hybrid{Path: path}.Pipe())
	defer client.Close()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	guest := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, len(fmt.Sprintf("CONNECT %d\n", PipePort))))
		}
		if err == nil {
			_, err = io.WriteString(conn, "OK 5\n")
		}
		var s *Server
		if err == nil {
			s, err = NewServer(context.Background(), conn)
		}
		if err != nil {
			guest <- err
			return
		}
		defer s.Close()
		streams, err := s.Listen(7)
		if err != nil {
			guest <- err
			return
		}
		stream, err := streams.Accept()
		if err == nil {
			_, err = io.Copy(stream, stream)
			stream.Close()
		}
		guest <- err
		<-s.Done()
	}()
	conn, err := client.Dial(t.Context(), 7)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "hello")
	conn.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("echo %q, %v", got, err)
	}
	if err := <-guest; err != nil {
		t.Error(err)
	}
}

// TestHybridPipeClosed: a pipe that never found anybody ends.
func TestHybridPipeClosed(t *testing.T) {
	client := NewClient(Hybrid{Path: filepath.Join(t.TempDir(), "none")}.Pipe())
	client.Close()
	if _, err := client.Dial(t.Context(), 7); !errdefs.IsUnavailable(err) {
		t.Errorf("dial: %v", err)
	}
}

// TestHybridFollowsNoLink: the directory is the VMM's, which may be hostile by now.
func TestHybridFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "precious"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Symlink("precious", filepath.Join(dir, "vsock")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	accepted := make(chan struct{})
	go func() {
		if conn, err := l.Accept(); err == nil {
			conn.Close()
			close(accepted)
		}
	}()
	if _, err := (Hybrid{Path: filepath.Join(dir, "vsock")}).Dial(ctx, 1); err == nil {
		t.Error("a link was followed")
	}
	select {
	case <-accepted:
		t.Error("somebody connected")
	default:
	}
}

func TestHybridWithoutSocket(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := (Hybrid{Path: filepath.Join(t.TempDir(), "none")}).Dial(ctx, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dial: %v", err)
	}
}

func TestFindSerialPort(t *testing.T) {
	class := t.TempDir()
	for device, name := range map[string]string{"vport0p1": "other\n", "vport0p2": SerialPort + "\n"} {
		os.Mkdir(filepath.Join(class, device), 0o755)
		os.WriteFile(filepath.Join(class, device, "name"), []byte(name), 0o644)
	}
	if device, ok := findSerialPort(class, SerialPort); !ok || device != "vport0p2" {
		t.Errorf("found %q, %v", device, ok)
	}
	if _, ok := findSerialPort(filepath.Join(class, "none"), SerialPort); ok {
		t.Error("found a port in a directory that does not exist")
	}
}

func TestVSOCKErrors(t *testing.T) {
	for _, err := range []error{syscall.ECONNRESET, syscall.ENODEV, syscall.ETIMEDOUT, context.DeadlineExceeded} {
		if !mayListenLater(err) {
			t.Errorf("%v is not retried", err)
		}
	}
	if mayListenLater(syscall.EAFNOSUPPORT) {
		t.Error("a host without vsock is retried")
	}
}
