package taskshim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Events is where shims tell what happens, as containerd has it. Nothing of it is used, as each container is waited for:
// but shims do not start where they cannot tell, or try for long.
type Events struct {
	server *ttrpc.Server
	work   sync.WaitGroup
	err    error // of serving
}

// Serve listens at a path, in place of an earlier daemon.
func Serve(path string) (*Events, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("events of shims: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("events of shims: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("events of shims: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("events of shims: %w", err), l.Close())
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("events of shims: %w", err), l.Close())
	}
	server.Register("containerd.services.events.ttrpc.v1.Events", map[string]ttrpc.Method{
		"Forward": func(_ context.Context, unmarshal func(any) error) (any, error) {
			var ignored emptypb.Empty // of any message
			return &emptypb.Empty{}, unmarshal(&ignored)
		},
	})
	e := &Events{server: server}
	e.work.Go(func() { e.err = server.Serve(context.Background(), l) })
	return e, nil
}

// Close ends the service. The socket goes with the next one, or with the state directory.
func (e *Events) Close() error {
	err := e.server.Close()
	e.work.Wait()
	if errors.Is(e.err, ttrpc.ErrServerClosed) {
		return err
	}
	return errors.Join(err, e.err)
}
