package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/status"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/transport"
)

// headerTimeout bounds how long a client of the stream socket may take to say what it wants.
const headerTimeout = 10 * time.Second

// acceptPause is how long a shim without a free descriptor waits before it accepts again.
const acceptPause = 100 * time.Millisecond

// ServeStreams serves the stream socket until the listener is closed, and then ends the streams that are left.
func (s *Service) ServeStreams(ctx context.Context, l net.Listener) error {
	var streams sync.WaitGroup
	defer streams.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case transport.IsExhausted(err):
			// Descriptors come back when streams end. The pod lives on meanwhile.
			s.options.Log.Warn("stream not accepted", logfields.Error, err)
			select {
			case <-time.After(acceptPause):
				continue
			case <-ctx.Done():
				return nil
			}
		case err != nil:
			return fmt.Errorf("serve streams: %w", err)
		}
		streams.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.serveStream(ctx, conn)
		})
	}
}

// duplex is a connection of the stream socket.
type duplex interface {
	net.Conn
	CloseWrite() error
}

func (s *Service) serveStream(ctx context.Context, conn net.Conn) {
	client, ok := conn.(duplex)
	if !ok {
		return
	}
	conn.SetDeadline(time.Now().Add(headerTimeout))
	var header shimv1.StreamHeader
	if err := agentv1.ReadMessage(conn, &header); err != nil {
		s.options.Log.Debug("stream without header", logfields.Error, err)
		return
	}
	conn.SetDeadline(time.Time{})
	switch kind := header.Kind.(type) {
	case *shimv1.StreamHeader_Attach:
		s.serveAttach(client, kind.Attach)
	case *shimv1.StreamHeader_Dial:
		s.serveDial(ctx, client, kind.Dial)
	default:
		reply(conn, fmt.Errorf("stream of unknown kind: %w", errdefs.ErrInvalidArgument))
	}
}

// reply answers a header; it tells whether the stream goes on.
func reply(conn net.Conn, err error) bool {
	answer := &shimv1.StreamReply{}
	if err != nil {
		st := status.Convert(wireError(err))
		answer.Error, answer.Code = st.Message(), uint32(st.Code())
	}
	return agentv1.WriteMessage(conn, answer) == nil && err == nil
}

// serveDial connects the client to an address in the guest.
func (s *Service) serveDial(ctx context.Context, client duplex, d *shimv1.DialStream) {
	v, err := s.machine()
	if err != nil {
		reply(client, err)
		return
	}
	guest, err := v.Agent().Dial(ctx, d.Network, d.Address)
	if !reply(client, err) {
		if err == nil {
			guest.Close()
		}
		return
	}
	join(client, guest)
}

// join copies both ways until both have ended, passing on the end of each. What fails ends both.
func join(a, b duplex) {
	var copies sync.WaitGroup
	for _, way := range []struct{ dst, src duplex }{{a, b}, {b, a}} {
		copies.Go(func() {
			_, err := io.Copy(onlyWriter{way.dst}, onlyReader{way.src})
			if err == nil {
				err = way.dst.CloseWrite()
			}
			if err != nil {
				a.Close()
				b.Close()
			}
		})
	}
	copies.Wait()
	a.Close()
	b.Close()
}

// onlyReader and onlyWriter keep io.Copy from taking the connections' own copy loops, which are not for these pairs.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// serveAttach joins a client to the stdio of a process.
func (s *Service) serveAttach(client duplex, r *shimv1.AttachStream) {
	c, p, err := s.process(r.Container, r.Exec)
	if err == nil {
		err = attachable(p, r)
	}
	if err != nil {
		reply(client, err)
		return
	}
	if r.Exec == "" {
		s.attachContainer(client, c, r)
		return
	}
	s.attachExec(client, p, r)
}

func attachable(p *process, r *shimv1.AttachStream) error {
	p.mu.Lock()
	state := p.state
	p.mu.Unlock()
	switch {
	case state == processCreating:
		return fmt.Errorf("attach: %s is being created: %w", p.name(), errdefs.ErrFailedPrecondition)
	case state == processStopped || state == processDeleting:
		return fmt.Errorf("attach: %s has ended: %w", p.name(), errdefs.ErrFailedPrecondition)
	case r.Exec != "" && p.io.client == nil:
		return fmt.Errorf("attach: %s was not created for it: %w", p.name(), errdefs.ErrFailedPrecondition)
	case r.Stdin && p.io.in == nil:
		return fmt.Errorf("attach: %s was created without stdin: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// attachContainer shows a container's output from now on and gives it the client's input.
func (s *Service) attachContainer(client duplex, c *container, r *shimv1.AttachStream) {
	viewer := c.io.fanout.Join(r.Stdout, r.Stderr)
	if !reply(client, nil) {
		viewer.Leave()
		return
	}
	var input sync.WaitGroup
	defer input.Wait()
	input.Go(func() {
		stdio.ReadInput(client, c.io, r.Stdin, c.stdinOnce)
		if r.Stdin && c.stdinOnce {
			c.io.CloseStdin()
		}
		viewer.Leave() // the client has gone
	})
	viewer.Run(client)
	// The client's end of the connection ends the input.
	client.Close()
}

// attachExec carries an exec's stdio.
func (s *Service) attachExec(client duplex, p *process, r *shimv1.AttachStream) {
	// Output may flow as soon as the client has joined, so the reply comes first, and a second client is told no.
	if err := p.io.client.reserve(); err != nil {
		reply(client, err)
		return
	}
	if !reply(client, nil) {
		p.io.client.cut()
		return
	}
	p.io.client.join(client)
	stdio.ReadInput(client, p.io, r.Stdin, true)
	if r.Stdin {
		p.io.CloseStdin()
	}
	// The client has gone, or all was sent to it: what comes now is for nobody.
	p.io.client.cut()
}
