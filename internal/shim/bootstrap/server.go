package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	containerdlog "github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/shim"
)

const (
	// closeTimeout bounds the end of a shim, drainTimeout the answers that are still on their way.
	closeTimeout = 20 * time.Second
	drainTimeout = 2 * time.Second
	// gcPercent and maxProcs keep a process small of which a node runs hundreds.
	gcPercent = 40
	maxProcs  = 2
)

// serve is the shim process: it runs until it is told to end, by a call or by SIGTERM.
func serve(o shim.Options, debugging bool) error {
	if err := failpoint.Check(); err != nil {
		return err
	}
	tune()
	o.Log = slog.New(slog.NewTextHandler(logWriter(o.Bundle), &slog.HandlerOptions{Level: logLevel(debugging)}))
	lock, listeners, err := inherited()
	if err != nil {
		return err
	}
	defer lock.Close() // held until the process ends
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	service := shim.New(o)
	err = serveUntil(service, o.Log, listeners[0], listeners[1], signals)
	return errors.Join(err, os.RemoveAll(o.Bundle.ShimSocket()), os.RemoveAll(o.Bundle.StreamSocket()))
}

// tune makes the process small and deaf to broken pipes.
func tune() {
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	debug.SetGCPercent(gcPercent)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(maxProcs)
	}
	// ttrpc reports every broken connection here, also those that a hostile guest breaks.
	containerdlog.L.Logger.SetOutput(io.Discard)
}

func logLevel(debugging bool) slog.Level {
	if debugging {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// logWriter is containerd's log FIFO where there is one, and otherwise stderr.
func logWriter(dir bundle.Dir) io.Writer {
	path := filepath.Join(string(dir), "log")
	if info, err := os.Stat(path); err == nil && info.Mode().Type() == fs.ModeNamedPipe {
		if f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			return f
		}
	}
	return os.Stderr
}

// inherited takes over the descriptors of the start command. No child of ours shall have them.
func inherited() (lock *os.File, listeners []net.Listener, err error) {
	for fd := lockFD; fd <= streamsFD; fd++ {
		unix.CloseOnExec(fd)
	}
	lock = os.NewFile(lockFD, "lock")
	for _, fd := range []int{shimSocketFD, streamsFD} {
		f := os.NewFile(uintptr(fd), "socket")
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, nil, fmt.Errorf("no listening socket at descriptor %d: this action is for the start command: %w", fd, err)
		}
		listeners = append(listeners, l)
	}
	return lock, listeners, nil
}

// serveUntil serves until the service is told to end or a signal comes, and then takes everything down.
func serveUntil(service *shim.Service, log *slog.Logger, rpc, streams net.Listener, signals <-chan os.Signal) error {
	server, err := shim.NewServer()
	if err != nil {
		return err
	}
	service.Register(server)
	var serving sync.WaitGroup
	failed := make(chan error, 2)
	ctx, cancel := context.WithCancel(context.Background())
	serving.Go(func() {
		if err := server.Serve(ctx, rpc); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
			failed <- err
		}
	})
	serving.Go(func() {
		if err := service.ServeStreams(ctx, streams); err != nil {
			failed <- err
		}
	})
	select {
	case <-service.Quit():
	case s := <-signals:
		log.Info("stopping", logfields.Signal, s.String())
	case err = <-failed:
	}
	stopping, done := context.WithTimeout(context.Background(), closeTimeout)
	defer done()
	err = errors.Join(err, service.Close(stopping))
	// Whoever waits is answered by now, or will be in a moment.
	draining, drained := context.WithTimeout(stopping, drainTimeout)
	defer drained()
	if server.Shutdown(draining) != nil {
		err = errors.Join(err, server.Close())
	}
	streams.Close()
	cancel()
	serving.Wait()
	return err
}
