package streaming

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/logfields"
)

// Options of a Server; all fields are needed.
type Options struct {
	// Address to listen on, host:port; port 0 picks one.
	Address     string
	IdleTimeout time.Duration
	Processes   processes
	Sandboxes   sandboxes
	Log         *slog.Logger
}

// Server hands out URLs and serves them.
type Server struct {
	engine      engine
	idleTimeout time.Duration
	tickets     *tickets

	listener *listener
	http     *http.Server
	cancel   context.CancelFunc
	served   sync.WaitGroup
	// processes and forwards are the requests that run.
	processes, forwards gate
}

// Listen opens the address and serves until Close.
func Listen(o Options) (*Server, error) {
	tcp, err := net.Listen("tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("streaming server: listen on %s: %w: %w", o.Address, err, errdefs.ErrUnavailable)
	}
	listener := &listener{Listener: tcp, open: map[net.Conn]struct{}{}}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		engine: engine{processes: o.Processes, sandboxes: o.Sandboxes}, idleTimeout: o.IdleTimeout,
		tickets: newTickets(time.Now), listener: listener, cancel: cancel,
	}
	s.http = &http.Server{
		Handler:           s.routes(),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	s.served.Go(func() {
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Error("streaming server ended", logfields.Error, err)
		}
	})
	return s, nil
}

// url is where a stream is served.
func (s *Server) url(path string) string {
	return (&url.URL{Scheme: "http", Host: s.listener.Addr().String(), Path: path}).String()
}

// Addr is the address that is listened on.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Close ends the server and every stream, and waits for what served them, until ctx ends. Streams took their
// connections out of the HTTP server's hands. Processes end with the context that their requests had, and their
// clients are told so; only then the connections are closed, as a client takes a connection that is just gone for
// success. Forwarded ports end with their connections.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Close()
	s.processes.close()
	s.forwards.close()
	s.cancel()
	err = errors.Join(err, s.processes.wait(ctx))
	s.listener.closeAll()
	s.served.Wait()
	return errors.Join(err, s.forwards.wait(ctx))
}
