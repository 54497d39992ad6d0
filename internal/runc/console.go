package runc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// consoleTimeout bounds the wait for a terminal that runc has already sent.
const consoleTimeout = 10 * time.Second

// consoleSocket is where runc sends the master of a new terminal.
type consoleSocket struct {
	dir, path string
	listener  *net.UnixListener
}

func newConsoleSocket(parent string) (*consoleSocket, error) {
	// A directory of its own, with a short name: socket paths have 107 bytes.
	dir, err := os.MkdirTemp(parent, "tty-")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return &consoleSocket{dir: dir, path: path, listener: l}, nil
}

func (c *consoleSocket) Close() {
	c.listener.Close()
	os.RemoveAll(c.dir)
}

// receive takes the terminal; runc sends it before its command ends, so that it waits in the socket.
func (c *consoleSocket) receive() (*os.File, error) {
	if err := c.listener.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return nil, err
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return nil, err
	}
	name, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, rights)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages, want one: %w", len(messages), errors.Join(err))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	// Not blocking, so that the file is in the poller and a close ends a read.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
