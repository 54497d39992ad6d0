package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"
)

const (
	// clientWriteTimeout bounds how long the host waits for a guest that takes nothing off the pipe.
	clientWriteTimeout = 2 * time.Minute
	// maxStreams bounds the streams of one guest, with those that the guest never accepts or closes: each may fill a
	// window of the host's memory.
	maxStreams = 1024
)

// Client is the host's end of a pipe that carries many streams.
type Client struct {
	pipe  io.ReadWriteCloser
	ready chan struct{} // closed when links is set
	done  chan struct{} // closed when err is set

	links *links
	err   error

	opening sync.Mutex // keeps the order of ids
	mu      sync.Mutex
	closed  bool
	work    sync.WaitGroup
}

// NewClient takes over the pipe and waits for the guest in the background.
func NewClient(pipe io.ReadWriteCloser) *Client {
	c := &Client{pipe: pipe, ready: make(chan struct{}), done: make(chan struct{})}
	c.work.Go(c.run)
	return c
}

// Close ends the pipe and every stream, and joins the client's goroutines.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.pipe.Close()
	c.work.Wait()
	return err
}

// Done is closed when the pipe has ended and all that came through it was taken.
func (c *Client) Done() <-chan struct{} { return c.done }

func (c *Client) run() {
	defer close(c.done)
	defer c.pipe.Close()
	if c.err = greetGuest(c.pipe); c.err != nil {
		return
	}
	session, err := yamux.Client(&guard{ReadWriteCloser: c.pipe}, yamuxConfig(clientWriteTimeout))
	if err != nil {
		c.err = err
		return
	}
	defer session.Close()
	notices, err := session.OpenStream()
	if err == nil {
		err = writeUint32(notices, noticePort)
	}
	if err != nil {
		session.Close()
		_, c.err = session.AcceptStream() // knows what ended the session first
		return
	}
	c.links = newLinks(session, notices)
	close(c.ready)
	var reader sync.WaitGroup
	reader.Go(func() {
		if err := c.links.readNotices(); err != nil {
			session.Close() // without notices writers would hang
		}
	})
	// The guest opens no streams: this waits for the session's end and learns its reason.
	_, c.err = session.AcceptStream()
	session.Close()
	reader.Wait()
}

// Ready waits until the guest has opened its end of the pipe, or ctx ends. When the pipe has ended the error is
// errdefs.ErrUnavailable.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-c.done:
		return c.gone()
	case <-ctx.Done():
		return fmt.Errorf("the guest has not opened its end of the pipe: %w", context.Cause(ctx))
	}
}

// Dial opens a stream to a port of the guest. It waits while the guest is booting, until ctx ends. When the
// pipe has ended the error is errdefs.ErrUnavailable.
func (c *Client) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if err := c.Ready(ctx); err != nil {
		return nil, fmt.Errorf("dial guest port %d: %w", port, err)
	}
	conn, err := retry(ctx, port, func(ctx context.Context) (net.Conn, error) { return c.attempt(ctx, port) })
	if err != nil && c.links.session.IsClosed() {
		return nil, fmt.Errorf("dial guest port %d: %w", port, c.gone())
	}
	return conn, err
}

// gone says why the pipe ended.
func (c *Client) gone() error {
	<-c.done
	return fmt.Errorf("the guest's end of the pipe has gone (%w): %w", c.err, errdefs.ErrUnavailable)
}

// attempt opens one stream, in a goroutine of its own because a pipe that takes nothing would block it.
func (c *Client) attempt(ctx context.Context, port uint32) (net.Conn, error) {
	type result struct {
		conn *stream
		err  error
	}
	results := make(chan result)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, fmt.Errorf("the transport was closed: %w", errdefs.ErrUnavailable)
	}
	c.work.Go(func() {
		conn, err := c.open(ctx, port)
		select {
		case results <- result{conn, err}:
		case <-ctx.Done():
			if conn != nil {
				conn.Close()
			}
		}
	})
	c.mu.Unlock()
	select {
	case r := <-results:
		if r.err != nil {
			return nil, r.err
		}
		return r.conn, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// open opens a stream and has the guest accept it.
func (c *Client) open(ctx context.Context, port uint32) (*stream, error) {
	c.opening.Lock()
	if n := c.links.session.NumStreams(); n >= maxStreams {
		c.opening.Unlock()
		return nil, fmt.Errorf("%d streams to the guest are open: %w", n, errdefs.ErrResourceExhausted)
	}
	ys, err := c.links.session.OpenStream()
	if err != nil {
		c.opening.Unlock()
		return nil, err
	}
	s := c.links.add(ys)
	c.opening.Unlock()
	stop := context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })
	err = knock(s, port)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// knock asks for a port and waits for the answer.
func knock(s *stream, port uint32) error {
	if err := writeUint32(s, port); err != nil && !errors.Is(err, syscall.EPIPE) {
		return err
	}
	answer, err := readUint32(s)
	switch {
	case errors.Is(err, io.EOF):
		return errRefused
	case err != nil:
		return err
	case answer != port:
		return fmt.Errorf("the guest answered with port %d", answer)
	}
	return nil
}
