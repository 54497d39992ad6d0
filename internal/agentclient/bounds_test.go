package agentclient

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

func FuzzClean(f *testing.F) {
	f.Add("plain", 10)
	f.Add("\x1b[31mred\xff\xfe\u202e", 5)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = max(limit, 0) % 1024
		got := clean(s, limit)
		if len(got) > limit+len("…") || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("clean(%q, %d) = %q", s, limit, got)
		}
	})
}

// FuzzGuestError wants an error of a known class whatever the guest says.
func FuzzGuestError(f *testing.F) {
	f.Add("text", uint32(5))
	f.Add("not found", uint32(5))
	f.Add("", uint32(99))
	f.Fuzz(func(t *testing.T, text string, code uint32) {
		if err := guestError(text, codes.Code(code)); err == nil || err.Error() == "" {
			t.Errorf("guestError(%q, %d) = %v", text, code, err)
		}
	})
}

// scripted is a stream that says what it was told to.
type scripted struct {
	net.Conn
	r io.Reader
}

func (s scripted) Read(p []byte) (int, error)    { return s.r.Read(p) }
func (s scripted) Write(p []byte) (int, error)   { return len(p), nil }
func (s scripted) Close() error                  { return nil }
func (s scripted) CloseWrite() error             { return nil }
func (s scripted) SetDeadline(t time.Time) error { return nil }

// FuzzStreamReply answers a stream's header with anything.
func FuzzStreamReply(f *testing.F) {
	var ok, bad bytes.Buffer
	agentv1.WriteMessage(&ok, &agentv1.StreamReply{})
	agentv1.WriteMessage(&bad, &agentv1.StreamReply{Error: "no", Code: 5})
	f.Add(ok.Bytes())
	f.Add(bad.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &Client{timeout: time.Second, dial: func(context.Context, uint32) (net.Conn, error) {
			return scripted{r: bytes.NewReader(data)}, nil
		}}
		s, err := c.Dial(t.Context(), "tcp", "localhost:1")
		if (s == nil) == (err == nil) {
			t.Errorf("stream %v, error %v", s, err)
		}
	})
}
