package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/monitor"
	"github.com/pistis-run/pistis/internal/reaper"
	"github.com/pistis-run/pistis/internal/runc"
	"github.com/pistis-run/pistis/internal/steps"
)

const (
	// requestTimeout bounds how long a client may take to say what it wants.
	requestTimeout = 10 * time.Second
	// acceptPause is how long a monitor without a free descriptor waits before it accepts again.
	acceptPause = 100 * time.Millisecond
)

// Server owns the containers of one pod.
type Server struct {
	dir     bundle.Dir
	runtime *runc.Runc
	reaper  *reaper.Reaper
	log     *slog.Logger
	buffers buffers
	// work are the goroutines that wait for processes; they end with the server's ctx, which stop ends.
	work sync.WaitGroup
	ctx  context.Context
	stop context.CancelFunc

	mu         sync.Mutex
	containers map[string]*container
	ending     bool
}

// New makes the server of a bundle.
func New(dir bundle.Dir, runtime *runc.Runc, reap *reaper.Reaper, log *slog.Logger) *Server {
	s := &Server{dir: dir, runtime: runtime, reaper: reap, log: log, containers: map[string]*container{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Serve serves the socket until a client shuts the monitor down. It is called once.
func (s *Server) Serve(l *net.UnixListener) error {
	var calls sync.WaitGroup
	defer s.work.Wait()
	defer calls.Wait()
	defer s.stop()
	ctx := s.ctx
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ECONNABORTED):
			// Descriptors come back when calls end. The containers live on meanwhile.
			s.log.Warn("connection not accepted", logfields.Error, err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		case err != nil:
			return fmt.Errorf("serve: %w", err)
		}
		calls.Go(func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.serve(monitor.Conn{UnixConn: conn})
		})
	}
}

// serve answers one call.
func (s *Server) serve(conn monitor.Conn) {
	if err := checkPeer(conn); err != nil {
		s.log.Warn("connection refused", logfields.Error, err)
		return
	}
	ctx := s.ctx
	conn.SetDeadline(time.Now().Add(requestTimeout))
	var req monitor.Request
	files, err := conn.Receive(&req)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		if !errors.Is(err, io.EOF) {
			_ = reply(ctx, conn, nil, err)
		}
		return
	}
	conn.SetDeadline(time.Time{})
	if req.Version != monitor.Version {
		_ = reply(ctx, conn, nil, fmt.Errorf("monitor protocol version %d: this monitor speaks %d; its pod must be made anew: %w", req.Version, monitor.Version, errdefs.ErrNotImplemented))
		return
	}
	if req.Steps {
		ctx = steps.Record(ctx)
	}
	switch req.Verb {
	case monitor.VerbAttach:
		s.serveAttach(ctx, conn, req)
	case monitor.VerbExec:
		s.serveExec(ctx, conn, req, files)
	default:
		ctx, stop := untilGone(ctx, conn)
		defer stop()
		result, err := s.dispatch(ctx, req)
		_ = reply(ctx, conn, result, err)
		if err == nil && req.Verb == monitor.VerbShutdown {
			s.stop()
		}
	}
}

// untilGone returns a context that ends when the client has gone, of which nothing more is to come. stop closes the
// connection.
func untilGone(ctx context.Context, conn monitor.Conn) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	})
	return ctx, func() {
		conn.Close()
		watch.Wait()
	}
}

// checkPeer lets in root only.
func checkPeer(conn monitor.Conn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if failed == nil && peer.Uid != 0 {
		failed = fmt.Errorf("user %d is not root: %w", peer.Uid, errdefs.ErrPermissionDenied)
	}
	return failed
}

// reply answers. Where the client has gone, nobody is left to be told of it.
func reply(ctx context.Context, conn monitor.Conn, result any, err error, files ...*os.File) error {
	answer := monitor.Reply{Error: monitor.NewError(err), Steps: steps.Encoded(ctx)}
	if err == nil && result != nil {
		if answer.Result, err = json.Marshal(result); err != nil {
			answer = monitor.Reply{Error: monitor.NewError(err)}
		}
	}
	conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	defer conn.SetWriteDeadline(time.Time{})
	return conn.Send(answer, files...)
}

func decode(args json.RawMessage, into any) error {
	if err := json.Unmarshal(args, into); err != nil {
		return fmt.Errorf("arguments: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// dispatch makes a call that has one answer.
func (s *Server) dispatch(ctx context.Context, req monitor.Request) (result any, err error) {
	switch req.Verb {
	case monitor.VerbHello:
		return nil, nil
	case monitor.VerbCreate:
		var args monitor.CreateRequest
		if err := decode(req.Args, &args); err != nil {
			return nil, err
		}
		return nil, s.create(args)
	case monitor.VerbShutdown:
		var args monitor.ShutdownArgs
		if err := decode(req.Args, &args); err != nil {
			return nil, err
		}
		return nil, s.shutdown(ctx, args.Force)
	case monitor.VerbProgram:
		var args monitor.ProgramArgs
		if err := decode(req.Args, &args); err != nil {
			return nil, err
		}
		return s.program(ctx, args)
	}
	c, err := s.container(req.ID.Container)
	if err != nil {
		return nil, err
	}
	if req.ID.Exec != "" && req.Verb != monitor.VerbSignal {
		return nil, fmt.Errorf("%s of an exec: that is its client's: %w", req.Verb, errdefs.ErrInvalidArgument)
	}
	switch req.Verb {
	case monitor.VerbStart:
		if c.request.External {
			return monitor.StartResult{}, c.carry()
		}
		pid, err := s.start(ctx, c)
		return monitor.StartResult{PID: uint32(pid)}, err
	case monitor.VerbExited:
		return c.ended(req.Args)
	case monitor.VerbPID:
		pid, err := c.pid()
		return monitor.StartResult{PID: uint32(pid)}, err
	case monitor.VerbSignal:
		var args monitor.SignalArgs
		if err := decode(req.Args, &args); err != nil {
			return nil, err
		}
		if req.ID.Exec != "" {
			return nil, c.signalExec(ctx, req.ID.Exec, unix.Signal(args.Signal))
		}
		return nil, c.signal(ctx, unix.Signal(args.Signal), args.All)
	case monitor.VerbWait:
		select {
		case <-c.exited:
			return c.exit, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	case monitor.VerbDelete:
		return nil, s.delete(c)
	case monitor.VerbResize:
		var args monitor.ResizeArgs
		if err := decode(req.Args, &args); err != nil {
			return nil, err
		}
		return nil, c.streams.ends.Resize(args.Width, args.Height)
	case monitor.VerbReopen:
		return nil, c.streams.reopenLog()
	case monitor.VerbUpdate:
		return nil, s.update(c, req.Args)
	case monitor.VerbCheckpoint:
		return nil, s.checkpoint(ctx, c, req.Args)
	}
	return nil, fmt.Errorf("monitor protocol: unknown call %q: %w", req.Verb, errdefs.ErrNotImplemented)
}

func (s *Server) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

// serveAttach joins a client to a container, until the client has gone or the output has ended.
func (s *Server) serveAttach(ctx context.Context, conn monitor.Conn, req monitor.Request) {
	var args monitor.AttachArgs
	c, err := s.container(req.ID.Container)
	if err == nil {
		err = decode(req.Args, &args)
	}
	if err == nil && req.ID.Exec != "" {
		err = fmt.Errorf("attach: the stdio of an exec is its client's: %w", errdefs.ErrInvalidArgument)
	}
	if err == nil {
		err = c.attachable(args)
	}
	if err != nil {
		_ = reply(ctx, conn, nil, err)
		return
	}
	// It sees the output from here on, and its first frame comes after the reply.
	viewer := c.streams.fanout.Join(args.Stdout, args.Stderr)
	if reply(ctx, conn, nil, nil) != nil {
		viewer.Leave()
		return
	}
	c.attach(conn, viewer, args.Stdin)
}

// shutdown makes the monitor ready to end.
func (s *Server) shutdown(ctx context.Context, force bool) error {
	s.mu.Lock()
	if len(s.containers) > 0 && !force {
		defer s.mu.Unlock()
		return fmt.Errorf("shut down: there are %d containers: %w", len(s.containers), errdefs.ErrFailedPrecondition)
	}
	s.ending = true
	var all []*container
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.Unlock()
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for i, c := range all {
		group.Go(func() { errs[i] = s.end(ctx, c) })
	}
	group.Wait()
	err := errors.Join(errs...)
	if err != nil {
		s.mu.Lock()
		s.ending = false
		s.mu.Unlock()
	}
	return err
}

// end kills and deletes a container.
func (s *Server) end(ctx context.Context, c *container) error {
	if err := c.signal(ctx, unix.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		return err
	}
	select {
	case <-c.exited:
		return s.delete(c)
	case <-ctx.Done():
		return ctx.Err()
	}
}
