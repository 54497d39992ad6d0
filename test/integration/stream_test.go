package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// executors are the protocols that clients speak.
var executors = map[string]func(*rest.Config, *url.URL) (remotecommand.Executor, error){
	"spdy": func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(c, "POST", u)
	},
	"websocket": func(c *rest.Config, u *url.URL) (remotecommand.Executor, error) {
		// The newest that the streaming library serves over WebSocket; it cannot close stdin alone.
		return remotecommand.NewWebSocketExecutorForProtocols(c, "GET", u.String(), "v4.channel.k8s.io")
	},
}

func parse(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// oneSize is a terminal whose size never changes.
type oneSize struct {
	size *remotecommand.TerminalSize
	done <-chan struct{}
}

func (o *oneSize) Next() *remotecommand.TerminalSize {
	if size := o.size; size != nil {
		o.size = nil
		return size
	}
	<-o.done
	return nil
}

// TestStreams: exec, attach and port-forward, with and without a terminal, by SPDY and by WebSocket.
func TestStreams(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("streams", nil)
	id := d.launch(pod, config, shell("main", "httpd -p 127.0.0.1:8082 -h /srv; "+forever))
	for protocol, dial := range executors {
		t.Run(protocol+" exec", func(t *testing.T) { execStreams(t, d, id, dial) })
		t.Run(protocol+" tty", func(t *testing.T) { execTTY(t, d, id, "tty", "/dev/pts/", dial) })
		t.Run(protocol+" attach", func(t *testing.T) {
			cat := shell("cat-"+protocol, "for i in 1 2; do read line; echo \"got $line\"; done; echo end")
			cat.Stdin, cat.StdinOnce = true, true
			attached(t, d, d.launch(pod, config, cat), dial)
		})
	}
	t.Run("port-forward", func(t *testing.T) { forwarded(t, d, pod) })
}

func execStreams(t *testing.T, d *daemon, id string, dial func(*rest.Config, *url.URL) (remotecommand.Executor, error)) {
	resp, err := d.Exec(d.call(), &runtime.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -n 20000; echo to-stderr >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	u := parse(t, resp.Url)
	executor, err := dial(&rest.Config{Host: u.Host}, u)
	if err != nil {
		t.Fatal(err)
	}
	input := strings.Repeat("a line of input\n", 20000)
	var out, errOut bytes.Buffer
	err = executor.StreamWithContext(d.call(), remotecommand.StreamOptions{Stdin: strings.NewReader(input), Stdout: &out, Stderr: &errOut})
	var code utilexec.CodeExitError
	if !errors.As(err, &code) || code.Code != 5 {
		t.Errorf("exit code: %v, want 5", err)
	}
	if out.String() != input {
		t.Errorf("%d bytes came back of %d, or others", out.Len(), len(input))
	}
	expect(t, "stderr", errOut.String(), "to-stderr\n")
}

func execTTY(t *testing.T, d *daemon, id, command, want string, dial func(*rest.Config, *url.URL) (remotecommand.Executor, error)) {
	resp, err := d.Exec(d.call(), &runtime.ExecRequest{ContainerId: id, Cmd: []string{"sh", "-c", "until stty size 2>/dev/null | grep -q '45 123'; do sleep 0.1; done; read go; stty size; " + command}, Tty: true, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	u := parse(t, resp.Url)
	executor, err := dial(&rest.Config{Host: u.Host}, u)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	defer close(done)
	input, typed := io.Pipe()
	go func() { _, _ = io.WriteString(typed, "go\n") }()
	var out bytes.Buffer
	err = executor.StreamWithContext(d.call(), remotecommand.StreamOptions{Stdin: input, Stdout: &out, Tty: true,
		TerminalSizeQueue: &oneSize{size: &remotecommand.TerminalSize{Width: 123, Height: 45}, done: done}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"45 123", want} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the terminal shows %q, which lacks %q", out.String(), want)
		}
	}
}

func attached(t *testing.T, d *daemon, id string, dial func(*rest.Config, *url.URL) (remotecommand.Executor, error)) {
	resp, err := d.Attach(d.call(), &runtime.AttachRequest{ContainerId: id, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	u := parse(t, resp.Url)
	executor, err := dial(&rest.Config{Host: u.Host}, u)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := executor.StreamWithContext(d.call(), remotecommand.StreamOptions{Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out, Stderr: io.Discard}); err != nil {
		t.Fatal(err)
	}
	const want = "got one\ngot two\nend\n"
	expect(t, "output", out.String(), want)
	expect(t, "log", d.logOf(d.wait(id), "stdout"), want)
}

// forwarded reaches a server that listens on the pod's localhost only.
func forwarded(t *testing.T, d *daemon, pod string) {
	resp, err := d.PortForward(d.call(), &runtime.PortForwardRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	u := parse(t, resp.Url)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	if err != nil {
		t.Fatal(err)
	}
	stop, ready, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u), []string{"0:8082"}, stop, ready, io.Discard, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	ports, err := forwarder.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		expect(t, "answer", httpGet(t, net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[0].Local))), "hello from a pod\n")
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestLogRotation: a container writes while its log is rotated away all the time; nothing is lost or reordered.
func TestLogRotation(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	logsAreRotated(t, d)
}

func TestHostLogRotation(t *testing.T) { onHost(t, logsAreRotated) }

func logsAreRotated(t *testing.T, d *daemon) {
	pod, config := d.runPod("rotation", nil)
	rotated(t, d, pod, config)
}

func rotated(t *testing.T, d *daemon, pod string, config *runtime.PodSandboxConfig) {
	const count = 50000
	id := d.launch(pod, config, shell("rotated", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; done; echo last", count)))
	path := d.status(id).LogPath
	var whole strings.Builder
	take := func(file string) {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		whole.Write(raw)
	}
	rotations := 0
	for ; d.status(id).State == runtime.ContainerState_CONTAINER_RUNNING; rotations++ {
		rotated := fmt.Sprintf("%s.%d", path, rotations)
		if err := os.Rename(path, rotated); err != nil {
			t.Fatal(err)
		}
		_, err := d.ReopenContainerLog(d.call(), &runtime.ReopenContainerLogRequest{ContainerId: id})
		if status.Code(err) != codes.FailedPrecondition && err != nil { // it may just have ended
			t.Fatal(err)
		}
		take(rotated)
	}
	d.wait(id)
	if _, err := os.Stat(path); err == nil {
		take(path)
	}
	var want strings.Builder
	for n := range count {
		fmt.Fprintln(&want, n+1)
	}
	fmt.Fprintln(&want, "last")
	if got := logText(t, whole.String(), "stdout"); got != want.String() {
		t.Errorf("the log has %d bytes, the container wrote %d, or others", len(got), want.Len())
	}
	t.Logf("%d rotations", rotations)
}
