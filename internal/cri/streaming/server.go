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
	calls    *calls
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
	calls := &calls{processes: o.Processes, sandboxes: o.Sandboxes}
	inner, err := streaming.NewServer(config, calls)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("streaming server: %w: %w", err, errdefs.ErrInternal), listener.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{Server: inner, listener: listener, cancel: cancel, calls: calls}
	s.http = &http.Server{
		Handler:           inner,
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
// connections out of the HTTP server's hands: the calls end with the context that their requests had, and then
// the connections are closed.
func (s *Server) Close(ctx context.Context) error {
	err := s.http.Close()
	s.calls.close()
	s.cancel()
	done := make(chan struct{})
	go func() { // ends with the last stream
		s.served.Wait()
		s.calls.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("streaming server: streams are still open: %w", ctx.Err()))
	}
	s.listener.closeAll()
	return err
}
