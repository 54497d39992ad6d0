package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// socketMode lets root and the socket's group in.
const socketMode = 0o660

// listen makes the Unix socket. One that a dead daemon left is replaced, one that somebody answers on is not, and
// neither is anything that is no socket.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("daemon: socket: %w", err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		// Before bind, so that there is no moment at which others could connect.
		var err error
		if ctlErr := conn.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), socketMode) }); ctlErr != nil {
			return ctlErr
		}
		return err
	}}
	listener, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("daemon: listen: %w", err)
	}
	// The process's umask may have taken more than it should.
	if err := os.Chmod(path, socketMode); err != nil {
		return nil, errors.Join(fmt.Errorf("daemon: socket: %w", err), listener.Close())
	}
	return listener, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("daemon: socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("daemon: socket: %s exists and is not a socket; remove it, or name another: %w", path, errdefs.ErrFailedPrecondition)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("daemon: socket: somebody serves %s already; stop it, or name another: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("daemon: stale socket: %w", err)
	}
	return nil
}
