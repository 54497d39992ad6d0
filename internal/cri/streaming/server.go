package streaming

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"k8s.io/cri-streaming/pkg/streaming"

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
	streaming.Server
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
	config := streaming.DefaultConfig
	config.StreamIdleTimeout = o.IdleTimeout
	config.BaseURL = &url.URL{Scheme: "http", Host: listener.Addr().String()}
	inner, err := streaming.NewServer(config, &calls{processes: o.Processes, sandboxes: o.Sandboxes})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("streaming server: %w: %w", err, errdefs.ErrInternal), listener.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{Server: inner, listener: listener, cancel: cancel}
	s.http = &http.Server{
		Handler:           s,
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

// ServeHTTP serves one stream.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g := &s.processes
	if strings.HasPrefix(r.URL.Path, "/portforward/") {
		g = &s.forwards
	}
	leave, ok := g.enter()
	if !ok {
		http.Error(w, "the daemon is going down", http.StatusServiceUnavailable)
		return
	}
	defer leave()
	s.Server.ServeHTTP(w, r)
}
