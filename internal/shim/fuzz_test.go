package shim

import (
	"bytes"
	"io"
	"net"
	"testing"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

// FuzzStream says anything to the stream socket. There is no VM behind it, so the answer is a refusal or none.
func FuzzStream(f *testing.F) {
	for _, h := range []*shimv1.StreamHeader{
		{}, {Kind: &shimv1.StreamHeader_Attach{Attach: &shimv1.AttachStream{Container: "c"}}}, {Kind: &shimv1.StreamHeader_Dial{Dial: &shimv1.DialStream{Network: "tcp"}}},
	} {
		var b bytes.Buffer
		agentv1.WriteMessage(&b, h)
		f.Add(b.Bytes())
	}
	s := New(Options{ID: "x"})
	f.Fuzz(func(t *testing.T, data []byte) {
		client, server, err := vmtest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			client.Write(data)
			client.(*net.UnixConn).CloseWrite()
		}()
		s.serveStream(t.Context(), server)
		server.Close()
		var reply shimv1.StreamReply
		if err := agentv1.ReadMessage(client, &reply); err == nil && reply.Error == "" {
			t.Error("it was taken")
		}
		client.Close()
	})
}

// FuzzInput gives frames to a process's input.
func FuzzInput(f *testing.F) {
	f.Add(stdio.AppendFrame(stdio.AppendFrame(nil, stdio.KindStdin, []byte("in")), stdio.KindCloseStdin, nil))
	f.Add([]byte{4, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		guest, host, err := vmtest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer guest.Close()
		go io.Copy(io.Discard, guest)
		p := &processIO{in: host.(*net.UnixConn), drained: make(chan struct{})}
		stdio.ReadInput(bytes.NewReader(data), p, true, true)
		p.close()
	})
}

// FuzzGuestProcess decodes the process of an exec.
func FuzzGuestProcess(f *testing.F) {
	f.Add([]byte(`{"args":["sh"],"cwd":"/","user":{"uid":1}}`))
	f.Add([]byte(`{"args":[],"selinuxLabel":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := guestProcess(data); err == nil && len(p.Args) == 0 {
			t.Error("a process without args was taken")
		}
	})
}
