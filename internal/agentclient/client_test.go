package agentclient_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	statsv1 "github.com/pistis-run/pistis/api/stats/v1"
	"github.com/pistis-run/pistis/internal/agentclient"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/transport"
	"github.com/pistis-run/pistis/internal/vm/vmtest"
)

func connect(t *testing.T, a *vmtest.Agent, timeout time.Duration) (*agentclient.Client, error) {
	t.Helper()
	d := &vmtest.Driver{Agent: a}
	m, err := d.Start(t.Context(), hypervisor.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	return agentclient.Connect(t.Context(), m.Dial, timeout)
}

func TestVersionMismatchNamesBoth(t *testing.T) {
	_, err := connect(t, &vmtest.Agent{Version: 9}, 0)
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "version 9") || !strings.Contains(err.Error(), "host 1") {
		t.Errorf("error = %v", err)
	}
}

func TestCallsAreBounded(t *testing.T) {
	a := &vmtest.Agent{}
	block := make(chan struct{})
	t.Cleanup(func() { close(block) })
	c, err := connect(t, a, 50*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	a.Intercept = func(string) error { <-block; return nil }
	if err := c.Pause(t.Context(), "c1"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "guest: pause: no answer within 50ms") {
		t.Errorf("error = %v", err)
	}
}

func TestErrorsAreCleaned(t *testing.T) {
	for code, class := range map[codes.Code]func(error) bool{
		codes.NotFound: errdefs.IsNotFound, codes.InvalidArgument: errdefs.IsInvalidArgument, codes.Unknown: errdefs.IsInternal,
		codes.FailedPrecondition: errdefs.IsFailedPrecondition, codes.Code(12345): errdefs.IsInternal,
	} {
		a := &vmtest.Agent{}
		c, err := connect(t, a, 0)
		if err != nil {
			t.Fatal(err)
		}
		a.Intercept = func(string) error { return status.Error(code, "bad\x1b[0m\n"+strings.Repeat("x", 1<<20)) }
		err = c.Resume(t.Context(), "c1")
		if !class(err) || len(err.Error()) > 8<<10 || strings.ContainsAny(err.Error(), "\x1b\n") {
			t.Errorf("%v: error of %d bytes: %.80q", code, len(err.Error()), err)
		}
		c.Close()
	}
}

func TestAnswersAreBounded(t *testing.T) {
	a := &vmtest.Agent{Answer: func(_ string, answer any) any {
		switch r := answer.(type) {
		case *agentv1.HelloResponse:
			r.Kernel, r.Features, r.UptimeNs = strings.Repeat("k\x00", 1<<20/2), make([]string, 1000), 1<<63
		case *agentv1.CreateContainerResponse:
			r.User.AdditionalGids = make([]uint32, 70000)
		case *agentv1.StatsResponse:
			r.Interfaces = make([]*statsv1.InterfaceStats, 1000)
		}
		return answer
	}}
	c, err := connect(t, a, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if info := c.Info(); len(info.Kernel) > 8<<10 || len(info.Features) > 100 || info.Uptime < 0 {
		t.Errorf("info: kernel of %d bytes, %d features, uptime %s", len(info.Kernel), len(info.Features), info.Uptime)
	}
	_, _, err = c.CreateContainer(t.Context(), &agentv1.CreateContainerRequest{Id: "c1", Spec: []byte(`{"process":{}}`)})
	if !errdefs.IsDataLoss(err) {
		t.Errorf("create = %v", err)
	}
	if _, err := c.Stats(t.Context()); !errdefs.IsDataLoss(err) {
		t.Errorf("stats = %v", err)
	}
}

func TestLostConnection(t *testing.T) {
	a := &vmtest.Agent{}
	d := &vmtest.Driver{Agent: a}
	m, err := d.Start(t.Context(), hypervisor.Config{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := agentclient.Connect(t.Context(), m.Dial, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.Kill()
	<-c.Done()
	if _, err := c.Wait(t.Context(), task.ID{Container: "c1"}); !errdefs.IsUnavailable(err) {
		t.Errorf("wait = %v", err)
	}
	if err := c.Shutdown(t.Context()); err != nil {
		t.Errorf("shutdown = %v, want nil: the guest is gone", err)
	}
}

func TestStreams(t *testing.T) {
	c, err := connect(t, &vmtest.Agent{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.OpenStdio(t.Context(), task.ID{Container: "nobody"}, agentv1.StdioStream_STDIN); !errdefs.IsNotFound(err) {
		t.Errorf("stdio of nobody = %v", err)
	}
	s, err := c.Dial(t.Context(), "tcp", "localhost:7")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	io.WriteString(s, "echo")
	s.CloseWrite()
	if data, err := io.ReadAll(s); string(data) != "echo" || err != nil {
		t.Errorf("read %q, %v", data, err)
	}
}

// TestShareStream: a share's stream goes to the port that the agent has for it, and tells what its server knows.
func TestShareStream(t *testing.T) {
	for _, tc := range []struct {
		features []string
		port     uint32 // 0: refused before anything is dialled
	}{
		{nil, 0},
		{[]string{agentv1.FeatureShares}, agentv1.StreamPort},
		{[]string{agentv1.FeatureShares, agentv1.FeatureDirectShares}, transport.DirectPort},
	} {
		a := &vmtest.Agent{Answer: func(_ string, answer any) any {
			if hello, ok := answer.(*agentv1.HelloResponse); ok {
				hello.Features = tc.features
			}
			return answer
		}}
		d := &vmtest.Driver{Agent: a}
		m, err := d.Start(t.Context(), hypervisor.Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Kill() })
		var port uint32
		headers := make(chan *agentv1.StreamHeader, 1)
		c, err := agentclient.Connect(t.Context(), func(ctx context.Context, to uint32) (net.Conn, error) {
			if to == agentv1.ControlPort {
				return m.Dial(ctx, to)
			}
			port = to
			host, guest, err := vmtest.Pair()
			if err != nil {
				return nil, err
			}
			go func() {
				defer guest.Close()
				header := &agentv1.StreamHeader{}
				if agentv1.ReadMessage(guest, header) == nil {
					headers <- header
					_ = agentv1.WriteMessage(guest, &agentv1.StreamReply{})
				}
			}()
			return host, nil
		}, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		s, err := c.OpenShare(t.Context(), "s1", true)
		if port != tc.port {
			t.Errorf("with the features %v port %d is dialled, want %d", tc.features, port, tc.port)
		}
		if tc.port == 0 {
			if !errdefs.IsFailedPrecondition(err) {
				t.Errorf("without shares: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if h := (<-headers).GetShare(); h.GetId() != "s1" || !h.GetFile() || !h.GetUnanswered() {
			t.Errorf("the header is %v", h)
		}
	}
}

// FuzzControl connects to an agent that says anything.
func FuzzControl(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 0x12, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 2, 0})
	f.Add(append([]byte{0, 0, 0, 8, 0, 0, 0, 1, 2, 0}, 0x12, 6, 8, 1, 0x2a, 2, 'v', '1'))
	f.Fuzz(func(t *testing.T, data []byte) {
		fuzzConn(t, data, func(ctx context.Context, dial agentclient.DialFunc) {
			if c, err := agentclient.Connect(ctx, dial, time.Second); err == nil {
				if c.Info().Version != agentv1.ProtocolVersion {
					t.Error("a wrong version was taken")
				}
				c.Close()
			}
		})
	})
}

// fuzzConn lets f dial a guest that says data and hangs up.
func fuzzConn(t *testing.T, data []byte, f func(context.Context, agentclient.DialFunc)) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	f(ctx, func(context.Context, uint32) (net.Conn, error) {
		host, guest, err := vmtest.Pair()
		if err != nil {
			return nil, err
		}
		go func() {
			io.Copy(guest, bytes.NewReader(data))
			guest.(*net.UnixConn).CloseWrite()
			io.Copy(io.Discard, guest)
			guest.Close()
		}()
		return host, nil
	})
}
