package streaming

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	streamhttp "k8s.io/streaming/pkg/httpstream"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/task"
)

// fake is an engine whose processes are functions.
type fake struct {
	run  func(ctx context.Context, cmd []string, tty bool, stdio task.Stdio, resize <-chan container.Size) (int32, error)
	dial func(ctx context.Context, network, address string) (io.ReadWriteCloser, error)
}

func (f *fake) Exec(ctx context.Context, id string, cmd []string, tty bool, stdio task.Stdio, resize <-chan container.Size) (int32, error) {
	return f.run(ctx, append([]string{id}, cmd...), tty, stdio, resize)
}

func (f *fake) Attach(ctx context.Context, id string, tty bool, stdio task.Stdio, resize <-chan container.Size) error {
	_, err := f.run(ctx, []string{id}, tty, stdio, resize)
	return err
}

func (f *fake) Tasks(context.Context, string) (task.Service, error) { return dialer{dial: f.dial}, nil }

type dialer struct {
	task.Service
	dial func(ctx context.Context, network, address string) (io.ReadWriteCloser, error)
}

func (d dialer) Dial(ctx context.Context, network, address string) (io.ReadWriteCloser, error) {
	return d.dial(ctx, network, address)
}

func listen(t *testing.T, f *fake) *Server {
	t.Helper()
	s, err := Listen(Options{
		Address: "127.0.0.1:0", IdleTimeout: time.Minute, Processes: f, Sandboxes: f,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// executors are the protocols that clients speak.
var executors = map[string]func(u *url.URL) (remotecommand.Executor, error){
	"spdy": spdyExecutor,
	"websocket v4": func(u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{Host: u.Host}, http.MethodGet, u.String(), "v4.channel.k8s.io")
	},
	"websocket v5": webSocketExecutor,
	// As kubectl does: a WebSocket first, and SPDY where the server does not want it.
	"fallback": func(u *url.URL) (remotecommand.Executor, error) {
		newer, err := remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{Host: u.Host}, http.MethodGet, u.String(), "v9.channel.k8s.io")
		if err != nil {
			return nil, err
		}
		older, err := spdyExecutor(u)
		if err != nil {
			return nil, err
		}
		return remotecommand.NewFallbackExecutor(newer, older, streamhttp.IsUpgradeFailure)
	},
}

func spdyExecutor(u *url.URL) (remotecommand.Executor, error) {
	return remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, http.MethodPost, u)
}

func webSocketExecutor(u *url.URL) (remotecommand.Executor, error) {
	return remotecommand.NewWebSocketExecutor(&rest.Config{Host: u.Host}, http.MethodGet, u.String())
}

func forEachProtocol(t *testing.T, test func(t *testing.T, connect func(address string) remotecommand.Executor)) {
	for name, newExecutor := range executors {
		t.Run(name, func(t *testing.T) {
			test(t, func(address string) remotecommand.Executor {
				t.Helper()
				u, err := url.Parse(address)
				if err != nil {
					t.Fatal(err)
				}
				executor, err := newExecutor(u)
				if err != nil {
					t.Fatal(err)
				}
				return executor
			})
		})
	}
}

func TestExecStreamsAndExitCode(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		f := &fake{run: func(_ context.Context, cmd []string, tty bool, stdio task.Stdio, _ <-chan container.Size) (int32, error) {
			line := make([]byte, 5)
			if _, err := io.ReadFull(stdio.Stdin, line); err != nil {
				return 0, err
			}
			fmt.Fprintf(stdio.Stdout, "%s %v %t", line, cmd, tty)
			fmt.Fprint(stdio.Stderr, "trouble")
			return 42, nil
		}}
		s := listen(t, f)
		resp, err := s.GetExec(&runtime.ExecRequest{ContainerId: "c1", Cmd: []string{"cat", "-"}, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		err = connect(resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{
			Stdin: strings.NewReader("hello"), Stdout: &stdout, Stderr: &stderr,
		})
		var code utilexec.CodeExitError
		if !errors.As(err, &code) || code.Code != 42 {
			t.Errorf("got %v, want exit code 42", err)
		}
		if stdout.String() != "hello [c1 cat -] false" || stderr.String() != "trouble" {
			t.Errorf("stdout %q, stderr %q", &stdout, &stderr)
		}
		// The URL was for one use.
		if err := connect(resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &stdout}); err == nil {
			t.Error("a URL works twice")
		}
	})
}

// TestExecWithoutStdin: a process that reads finds the end at once, and does not wait for ever.
func TestExecWithoutStdin(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		f := &fake{run: func(_ context.Context, _ []string, _ bool, stdio task.Stdio, _ <-chan container.Size) (int32, error) {
			if stdio.Stdin != nil {
				if _, err := io.ReadAll(stdio.Stdin); err != nil {
					return 0, err
				}
			}
			_, err := fmt.Fprint(stdio.Stdout, "done")
			return 0, err
		}}
		s := listen(t, f)
		resp, err := s.GetExec(&runtime.ExecRequest{ContainerId: "c1", Cmd: []string{"cat"}, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		var stdout bytes.Buffer
		if err := connect(resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &stdout}); err != nil || stdout.String() != "done" {
			t.Errorf("%q, %v", &stdout, err)
		}
	})
}

type sizeQueue chan remotecommand.TerminalSize

func (q sizeQueue) Next() *remotecommand.TerminalSize {
	size, ok := <-q
	if !ok {
		return nil
	}
	return &size
}

func TestTerminalResize(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		f := &fake{run: func(_ context.Context, _ []string, tty bool, stdio task.Stdio, resize <-chan container.Size) (int32, error) {
			for range 2 {
				size := <-resize
				fmt.Fprintf(stdio.Stdout, "%dx%d %t;", size.Width, size.Height, tty)
			}
			return 0, nil
		}}
		s := listen(t, f)
		resp, err := s.GetExec(&runtime.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		sizes := make(sizeQueue, 2)
		sizes <- remotecommand.TerminalSize{Width: 80, Height: 24}
		sizes <- remotecommand.TerminalSize{Width: 132, Height: 50}
		defer close(sizes)
		stdin, keepOpen := io.Pipe()
		defer keepOpen.Close()
		var stdout bytes.Buffer
		err = connect(resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{
			Stdin: stdin, Stdout: &stdout, Tty: true, TerminalSizeQueue: sizes,
		})
		if err != nil || stdout.String() != "80x24 true;132x50 true;" {
			t.Errorf("%q, %v", &stdout, err)
		}
	})
}

func TestAttachAndErrors(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		f := &fake{run: func(_ context.Context, _ []string, _ bool, stdio task.Stdio, _ <-chan container.Size) (int32, error) {
			fmt.Fprint(stdio.Stdout, "some")
			return 0, fmt.Errorf("the virtual machine ended: %w", errdefs.ErrUnavailable)
		}}
		s := listen(t, f)
		resp, err := s.GetAttach(&runtime.AttachRequest{ContainerId: "c", Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		var stdout bytes.Buffer
		err = connect(resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &stdout})
		if err == nil || !strings.Contains(err.Error(), "the virtual machine ended") || stdout.String() != "some" {
			t.Errorf("%q, %v", &stdout, err)
		}
	})
}

// TestEndOfStdin: a process that reads to the end answers while the client waits. Version 4 of the WebSocket protocol
// cannot say that stdin ended.
func TestEndOfStdin(t *testing.T) {
	forEachProtocol(t, func(t *testing.T, connect func(string) remotecommand.Executor) {
		if strings.HasSuffix(t.Name(), "v4") {
			t.Skip("not in this protocol")
		}
		f := &fake{run: func(_ context.Context, _ []string, _ bool, stdio task.Stdio, _ <-chan container.Size) (int32, error) {
			all, err := io.ReadAll(stdio.Stdin)
			if err != nil {
				return 0, err
			}
			_, err = fmt.Fprintf(stdio.Stdout, "%x", sha256.Sum256(all))
			return 0, err
		}}
		s := listen(t, f)
		resp, err := s.GetExec(&runtime.ExecRequest{ContainerId: "c", Cmd: []string{"sha256sum"}, Stdin: true, Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		stdin := bytes.Repeat([]byte{0, 255, 'x'}, 1<<20)
		var stdout bytes.Buffer
		err = connect(resp.Url).StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdin: bytes.NewReader(stdin), Stdout: &stdout})
		if want := fmt.Sprintf("%x", sha256.Sum256(stdin)); err != nil || stdout.String() != want {
			t.Errorf("got %q, want %q; %v", &stdout, want, err)
		}
	})
}

// TestCloseEndsStreams: a process that would run for ever learns of the end through its context.
func TestCloseEndsStreams(t *testing.T) {
	started := make(chan struct{})
	f := &fake{run: func(ctx context.Context, _ []string, _ bool, _ task.Stdio, _ <-chan container.Size) (int32, error) {
		close(started)
		<-ctx.Done()
		return 0, ctx.Err()
	}}
	s := listen(t, f)
	resp, err := s.GetExec(&runtime.ExecRequest{ContainerId: "c", Cmd: []string{"sleep"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(resp.Url)
	executor, err := spdyExecutor(u)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- executor.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: io.Discard})
	}()
	<-started
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil {
		t.Error("the client was told that all is well")
	}
	s.listener.mu.Lock()
	defer s.listener.mu.Unlock()
	if len(s.listener.open) != 0 {
		t.Error("connections are still open")
	}
}

func TestPortForward(t *testing.T) {
	overSPDY := func(u *url.URL) (httpstream.Dialer, error) {
		transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
		return spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), err
	}
	overWebSocket := func(u *url.URL) (httpstream.Dialer, error) {
		return portforward.NewSPDYOverWebsocketDialer(u, &rest.Config{Host: u.Host})
	}
	t.Run("spdy", func(t *testing.T) { testPortForward(t, overSPDY) })
	t.Run("websocket", func(t *testing.T) { testPortForward(t, overWebSocket) })
}

func testPortForward(t *testing.T, newDialer func(*url.URL) (httpstream.Dialer, error)) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			// It answers only after the client's end: the half-close must get through.
			served.Go(func() {
				data, _ := io.ReadAll(conn)
				_, _ = conn.Write(bytes.ToUpper(data))
				_ = conn.Close()
			})
		}
	})
	var dialled string
	f := &fake{dial: func(ctx context.Context, network, address string) (io.ReadWriteCloser, error) {
		if strings.HasSuffix(address, ":81") {
			return nil, fmt.Errorf("connection refused: %w", errdefs.ErrUnavailable)
		}
		dialled = network + " " + address
		return (&net.Dialer{}).DialContext(ctx, "tcp", echo.Addr().String())
	}}
	s := listen(t, f)
	resp, err := s.GetPortForward(&runtime.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(resp.Url)
	dialer, err := newDialer(u)
	if err != nil {
		t.Fatal(err)
	}
	stop, ready := make(chan struct{}), make(chan struct{})
	var problems bytes.Buffer
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{"0:80", "0:81"}, stop, ready, io.Discard, &problems)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- forwarder.ForwardPorts() }()
	<-ready
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"HELLO", ""} {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[i].Local))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("hello"))
		_ = conn.(*net.TCPConn).CloseWrite()
		got, _ := io.ReadAll(conn)
		_ = conn.Close()
		if string(got) != want {
			t.Errorf("port %d: got %q, want %q", ports[i].Remote, got, want)
		}
	}
	close(stop)
	<-ended
	_ = echo.Close()
	served.Wait()
	if dialled != "tcp localhost:80" {
		t.Errorf("dialled %q", dialled)
	}
}

// TestJoinEndsWithContext: neither side needs to do anything.
func TestJoinEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client, clientFar := net.Pipe()
	pod, podFar := net.Pipe()
	defer clientFar.Close()
	defer podFar.Close()
	ended := make(chan error, 1)
	go func() { ended <- join(ctx, client, pod) }()
	go clientFar.Write([]byte("x"))
	if _, err := podFar.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
