package monitor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// maxMessage bounds a message in bytes. The kernel takes 2 MiB of arguments and environment at most.
	maxMessage = 4 << 20
	// maxFiles bounds the descriptors beside a message.
	maxFiles = 3

	headerSize = 4
)

// Conn carries messages: four bytes of length, big-endian, then JSON; descriptors come with the first byte.
type Conn struct{ *net.UnixConn }

// Send writes one message. The files stay the caller's.
func (c Conn) Send(message any, files ...*os.File) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("message of %d bytes exceeds %d: %w", len(body), maxMessage, errdefs.ErrInvalidArgument)
	}
	data := append(binary.BigEndian.AppendUint32(make([]byte, 0, headerSize+len(body)), uint32(len(body))), body...)
	if len(files) > 0 {
		n, err := c.sendFiles(data, files)
		if err != nil {
			return err
		}
		data = data[n:]
	}
	if len(data) == 0 {
		return nil // a write of nothing fails where the other side has answered and gone already
	}
	_, err = c.Write(data)
	return err
}

func (c Conn) sendFiles(data []byte, files []*os.File) (int, error) {
	fds := make([]int, 0, maxFiles)
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		// Not by Fd, which would take our end out of the poller.
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return 0, err
		}
	}
	n, _, err := c.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
	return n, err
}

// Receive reads one message and the descriptors beside it, which are the caller's then.
func (c Conn) Receive(message any) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	var header [headerSize]byte
	rights := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, rn, flags, _, err := c.ReadMsgUnix(header[:], rights)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if files, err = parseRights(rights[:rn]); err != nil {
		return files, err
	}
	if flags&unix.MSG_CTRUNC != 0 || len(files) > maxFiles {
		return files, fmt.Errorf("message with more than %d descriptors: %w", maxFiles, errdefs.ErrInvalidArgument)
	}
	if _, err := io.ReadFull(c, header[n:]); err != nil {
		return files, unexpected(err)
	}
	size := binary.BigEndian.Uint32(header[:])
	if size > maxMessage {
		return files, fmt.Errorf("message of %d bytes exceeds %d: %w", size, maxMessage, errdefs.ErrInvalidArgument)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c, body); err != nil {
		return files, unexpected(err)
	}
	if err := json.Unmarshal(body, message); err != nil {
		return files, fmt.Errorf("message: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return files, nil
}

// parseRights returns all descriptors that were received, also together with an error.
func parseRights(rights []byte) (files []*os.File, err error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, parseErr := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
		err = errors.Join(err, parseErr)
	}
	return files, err
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
