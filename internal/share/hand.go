package share

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/transport"
)

// handover is the first byte of a share's stream where its order said that one comes. With a descriptor, messages pass through
// that, and the stream only tells of the end: a byte when no message can pass any more, and its end when the server has let go.
const handover = 1

// Hand says how messages pass between the server and a guest, for a share that was served with Share.Handed. If the
// connection is a socket of its own, as over vsock, the server gets it, the shim takes no part, and the caller closes
// its own. Otherwise taken is false, and the caller carries messages between guest and Stream.
func (s *Served) Hand(guest net.Conn) (taken bool, err error) {
	conn, ok := guest.(syscall.Conn)
	if !ok {
		_, err := s.Stream.Write([]byte{handover})
		return false, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		_, _, sent = s.Stream.WriteMsgUnix([]byte{handover}, unix.UnixRights(int(fd)), nil)
	})
	return true, errors.Join(err, sent)
}

// taken is the guest's stream in the server.
type taken struct {
	*transport.Eager
	stream *net.UnixConn
}

// Close is called when nothing is read any more, or nothing shall be.
func (t taken) Close() error {
	_, _ = t.stream.Write([]byte{0}) // nobody listens where the shim has gone
	return t.Eager.Close()
}

// messages is what the guest's messages pass through.
func (o order) messages(stream *net.UnixConn, eagerness *transport.Eagerness) (io.ReadWriteCloser, error) {
	if !o.Handed {
		return halfClosed{stream}, nil
	}
	data, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := stream.ReadMsgUnix(data, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil || oobn == 0 {
		return halfClosed{stream}, err
	}
	fds, err := rights(oob[:oobn], 1)
	if err != nil {
		return nil, err
	}
	eager, err := eagerness.Adopt(fds[0])
	if err == nil {
		err = unix.SetNonblock(fds[0], true)
	}
	if err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	go func() {
		_, _ = io.Copy(io.Discard, stream)
		eager.Close() // the shim ends the share
	}()
	return taken{eager, stream}, nil
}

// rights are the descriptors that came with a message.
func rights(oob []byte, want int) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != want {
		return nil, fmt.Errorf("%d descriptors: %w", len(fds), err)
	}
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	return fds, nil
}
