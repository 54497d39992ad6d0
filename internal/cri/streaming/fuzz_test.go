package streaming

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/websocket"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/task"
)

// dialWebSocket opens a WebSocket on a stream's URL.
func dialWebSocket(t *testing.T, address, protocol string) *websocket.Conn {
	t.Helper()
	conn, err := websocket.Dial(strings.Replace(address, "http://", "ws://", 1), protocol, "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	conn.PayloadType = websocket.BinaryFrame
	return conn
}

// splitMessages cuts data into messages: a byte that says how long one is, and as many bytes as there are.
func splitMessages(data []byte) [][]byte {
	var messages [][]byte
	for len(data) > 0 {
		n := min(int(data[0]), len(data)-1)
		messages = append(messages, data[1:1+n])
		data = data[1+n:]
	}
	return messages
}

// stdinOf is what of the messages a process must read, as the protocol says, and whether a message breaks it.
func stdinOf(messages [][]byte) (stdin []byte, broken bool) {
	closed := false
	for _, m := range messages {
		switch {
		case len(m) == 0:
		case m[0] == 255 && (len(m) != 2 || m[1] > 4):
			return stdin, true
		case m[0] == 255:
			closed = closed || m[1] == 0
		case m[0] == 0 && !closed:
			stdin = append(stdin, m[1:]...)
		}
	}
	return stdin, false
}

// FuzzChannels: whatever messages a client sends, its process reads what is its stdin, and the stream ends.
func FuzzChannels(f *testing.F) {
	f.Add([]byte("\x03\x00hi\x02\xff\x00"))
	f.Add([]byte("\x03\x00hi\x02\xff\x04\x03\x00ho\x02\xff\x00\x02\x00!"))
	f.Add([]byte("\x18\x04{\"Width\":80,\"Height\":24}\x01\xff"))
	f.Add([]byte("\x00\x02\xff\xff\x02\x09x\x02\x01x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var read [][]byte
		s := listen(t, &fake{run: func(_ context.Context, _ []string, _ bool, stdio task.Stdio, _ <-chan container.Size) (int32, error) {
			all, err := io.ReadAll(stdio.Stdin)
			read = append(read, all)
			return 0, err
		}})
		resp, err := s.GetExec(&runtime.ExecRequest{ContainerId: "c", Cmd: []string{"cat"}, Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		conn := dialWebSocket(t, resp.Url, "v5.channel.k8s.io")
		defer conn.Close()
		messages := splitMessages(data)
		for _, m := range messages {
			if _, err := conn.Write(m); err != nil {
				break // the server had enough
			}
		}
		_, _ = conn.Write([]byte{255, 0})
		_, _ = io.Copy(io.Discard, conn) // until the server closes it
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		want, broken := stdinOf(messages)
		if broken && len(read) == 0 {
			return // it ended before the process began
		}
		if len(read) != 1 || !bytes.Equal(read[0], want) {
			t.Errorf("the process read %q, want %q", read, want)
		}
	})
}

// FuzzTunnel: bytes that are no SPDY end the connection, and the server lives.
func FuzzTunnel(f *testing.F) {
	f.Add([]byte("\x80\x03\x00\x01\x01\x00\x00\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := listen(t, &fake{})
		resp, err := s.GetPortForward(&runtime.PortForwardRequest{PodSandboxId: "p"})
		if err != nil {
			t.Fatal(err)
		}
		conn := dialWebSocket(t, resp.Url, tunnelProtocol)
		_, _ = conn.Write(data) // the server may have had enough
		_ = conn.Close()
	})
}

// FuzzSizes: what is handed on is what a decoder of the whole would find, but for what is too long.
func FuzzSizes(f *testing.F) {
	f.Add([]byte(`{"Width":80,"Height":24}` + "\n" + `{"Width":1,"Height":65535}`))
	f.Add([]byte(`{"Width":-1}`))
	f.Add([]byte(strings.Repeat(" ", 3*maxSizeMessage) + `{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		sizes := make(chan container.Size)
		go readSizes(t.Context(), bytes.NewReader(data), sizes)
		decoder := json.NewDecoder(bytes.NewReader(data))
		for got := range sizes {
			var want struct{ Width, Height uint16 }
			if err := decoder.Decode(&want); err != nil || got != container.Size(want) {
				t.Fatalf("got %v, want %v, %v", got, want, err)
			}
		}
	})
}
