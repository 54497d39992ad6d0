package transport

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// portTimeout bounds how long the guest waits for the port of a stream that the host has opened.
const portTimeout = time.Minute

// Server is the guest's end of a pipe that carries many streams.
type Server struct {
	session *yamux.Session
	links   *links
	done    chan struct{}
	work    sync.WaitGroup

	mu        sync.Mutex
	listeners map[uint32]*listener
}

// NewServer takes over the pipe, greets the host and waits for its answer until ctx ends. On error the pipe
// is closed.
func NewServer(ctx context.Context, pipe io.ReadWriteCloser) (*Server, error) {
	stop := context.AfterFunc(ctx, func() { pipe.Close() })
	s, err := startServer(pipe)
	if !stop() && err == nil {
		s.session.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		pipe.Close()
		return nil, fmt.Errorf("serve the host's streams: %w", err)
	}
	s.work.Go(s.accept)
	s.work.Go(func() {
		if err := s.links.readNotices(); err != nil {
			s.session.Close() // without notices writers would hang
		}
	})
	return s, nil
}

func startServer(pipe io.ReadWriteCloser) (*Server, error) {
	if err := greetHost(pipe); err != nil {
		return nil, err
	}
	// No write timeout: the guest's clock may jump when the host pauses it.
	session, err := yamux.Server(&guard{ReadWriteCloser: pipe, mayOpen: true}, yamuxConfig(math.MaxInt64))
	if err != nil {
		return nil, err
	}
	notices, err := session.AcceptStream()
	if err == nil {
		var port uint32
		if port, err = readUint32(notices); err == nil && port != noticePort {
			err = fmt.Errorf("the host's first stream is to port %d, not to %d", port, noticePort)
		}
	}
	if err != nil {
		session.Close()
		return nil, err
	}
	return &Server{
		session: session, links: newLinks(session, notices),
		done: make(chan struct{}), listeners: make(map[uint32]*listener),
	}, nil
}

// Done is closed when the pipe has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Close ends the pipe, every listener and every stream, and joins the server's goroutines.
func (s *Server) Close() error {
	err := s.session.Close()
	s.work.Wait()
	return err
}

// Listen accepts the host's streams to a port. Streams that are dialled before are refused.
func (s *Server) Listen(port uint32) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.listeners[port]; taken || port == noticePort {
		return nil, fmt.Errorf("listen on port %d: address already in use", port)
	}
	l := &listener{server: s, port: port, conns: make(chan *stream), closed: make(chan struct{})}
	s.listeners[port] = l
	return l, nil
}

func (s *Server) accept() {
	defer close(s.done)
	for {
		ys, err := s.session.AcceptStream()
		if err != nil {
			s.session.Close()
			return
		}
		conn := s.links.add(ys)
		s.work.Go(func() { s.welcome(conn) })
	}
}

// welcome hands a stream to the listener of its port.
func (s *Server) welcome(conn *stream) {
	conn.SetReadDeadline(time.Now().Add(portTimeout))
	port, err := readUint32(conn)
	conn.SetReadDeadline(time.Time{})
	s.mu.Lock()
	l := s.listeners[port]
	s.mu.Unlock()
	if err != nil || l == nil || writeUint32(conn, port) != nil {
		conn.Close()
		return
	}
	select {
	case l.conns <- conn:
	case <-l.closed:
		conn.Close()
	case <-s.done:
		conn.Close()
	}
}

// listener is one port of a Server.
type listener struct {
	server *Server
	port   uint32
	conns  chan *stream
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
	case <-l.server.done:
	}
	return nil, &net.OpError{Op: "accept", Net: "virtio-serial", Addr: l.Addr(), Err: net.ErrClosed}
}

func (l *listener) Close() error {
	l.once.Do(func() {
		l.server.mu.Lock()
		delete(l.server.listeners, l.port)
		l.server.mu.Unlock()
		close(l.closed)
	})
	return nil
}

func (l *listener) Addr() net.Addr { return portAddr(l.port) }

// portAddr is a port of the guest.
type portAddr uint32

func (portAddr) Network() string  { return "virtio-serial" }
func (p portAddr) String() string { return fmt.Sprint(uint32(p)) }
