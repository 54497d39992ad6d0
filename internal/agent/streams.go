package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/logfields"
)

const (
	// maxStreams bounds the streams that are open at a time.
	maxStreams = 1024
	// headerTimeout bounds the wait for a stream's header, dialTimeout a connection inside the guest.
	headerTimeout = 10 * time.Second
	dialTimeout   = 30 * time.Second
	// halfOpenTimeout ends a forwarded connection whose client says nothing more, when its server falls silent too.
	halfOpenTimeout = 10 * time.Minute
	copyBuffer      = 64 << 10
)

// duplex is a stream that can be closed for writing alone.
type duplex interface {
	net.Conn
	CloseWrite() error
}

// serveStreams accepts streams until the listener is closed, and returns when all have ended.
func (a *Agent) serveStreams(ctx context.Context, l net.Listener) error {
	free := make(chan struct{}, maxStreams)
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		stream, ok := conn.(duplex)
		if !ok {
			conn.Close()
			return fmt.Errorf("a %T cannot be closed in one direction", conn)
		}
		select {
		case free <- struct{}{}:
		default:
			a.work.Go(func() {
				defer stream.Close()
				_ = stream.SetDeadline(time.Now().Add(headerTimeout))
				reply(stream, fmt.Errorf("%d streams are open: %w", maxStreams, errdefs.ErrResourceExhausted))
			})
			continue
		}
		a.work.Go(func() {
			defer func() { <-free }()
			defer stream.Close()
			if err := a.serveStream(ctx, stream); err != nil {
				a.Log.Debug("stream refused", logfields.Error, err)
			}
		})
	}
}

// reply answers a header; the error that it is told of, or that of sending, comes back.
func reply(w io.Writer, err error) error {
	r := &agentv1.StreamReply{}
	if err != nil {
		// Bounded, or the frame would be refused.
		r.Error, r.Code = fmt.Sprintf("%.4096s", err), uint32(codeOf(err))
	}
	return errors.Join(err, agentv1.WriteMessage(w, r))
}

func (a *Agent) serveStream(ctx context.Context, conn duplex) error {
	if err := conn.SetDeadline(time.Now().Add(headerTimeout)); err != nil {
		return err
	}
	var header agentv1.StreamHeader
	if err := agentv1.ReadMessage(conn, &header); err != nil {
		return reply(conn, invalid("stream header: %w", err))
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	switch kind := header.Kind.(type) {
	case *agentv1.StreamHeader_Stdio:
		return a.serveStdio(kind.Stdio, conn)
	case *agentv1.StreamHeader_Dial:
		return a.serveDial(ctx, kind.Dial, conn)
	case *agentv1.StreamHeader_Share:
		return a.serveShare(kind.Share, conn)
	}
	return reply(conn, unsupported("stream: of no kind that this agent knows"))
}

func (a *Agent) serveStdio(h *agentv1.StdioStream, conn duplex) error {
	_, p, err := a.process(h.Container, h.Exec)
	if err == nil && p.is(creating) {
		err = precondition("%s is %s", p.name, creating)
	}
	if err == nil {
		err = p.stdio.Claim(int(h.Fd))
	}
	if err := reply(conn, err); err != nil {
		return err
	}
	p.stdio.Serve(int(h.Fd), conn)
	return nil
}

func (a *Agent) serveDial(ctx context.Context, h *agentv1.DialStream, conn duplex) error {
	target, err := dialTarget(ctx, h.Network, h.Address)
	if err != nil {
		return reply(conn, err)
	}
	defer target.Close()
	if err := reply(conn, nil); err != nil {
		return err
	}
	relay(conn, target)
	return nil
}

// dialTarget connects inside the guest. localhost is both loopback addresses; other names are not resolved.
func dialTarget(ctx context.Context, network, address string) (duplex, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addresses := []string{address}
	switch network {
	case "unix":
	case "tcp":
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, invalid("address: %w", err)
		}
		if host == "localhost" {
			addresses = []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}
		} else if net.ParseIP(host) == nil {
			return nil, invalid("address: %q is neither an IP address nor localhost", host)
		}
	default:
		return nil, invalid("network %q: there are tcp and unix", network)
	}
	var failed error
	for _, address := range addresses {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			return conn.(duplex), nil // both kinds are
		}
		if failed != nil {
			err = fmt.Errorf("%w; %w", failed, err)
		}
		failed = err
	}
	return nil, fmt.Errorf("%w: %w", failed, errdefs.ErrUnavailable)
}

// relay copies both ways, half-closing what has ended, until both directions have.
func relay(host, target duplex) {
	quiet := &quietReader{conn: target}
	var both sync.WaitGroup
	both.Go(func() {
		forward(target, host)
		quiet.begin()
	})
	both.Go(func() { forward(host, quiet) })
	both.Wait()
}

func forward(to duplex, from io.Reader) {
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, copyBuffer))
	_ = to.CloseWrite()
	if err == nil {
		return
	}
	// One side is broken: the other must not wait for it.
	to.Close()
	if c, ok := from.(io.Closer); ok {
		c.Close()
	}
}

// quietReader gives up after halfOpenTimeout without a byte, once begin was called.
type quietReader struct {
	conn  net.Conn
	begun atomic.Bool
}

func (r *quietReader) begin() {
	r.begun.Store(true)
	_ = r.conn.SetReadDeadline(time.Now().Add(halfOpenTimeout))
}

func (r *quietReader) Read(p []byte) (int, error) {
	if r.begun.Load() {
		_ = r.conn.SetReadDeadline(time.Now().Add(halfOpenTimeout))
	}
	return r.conn.Read(p)
}

func (r *quietReader) Close() error { return r.conn.Close() }
