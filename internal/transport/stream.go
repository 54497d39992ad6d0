package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"
)

// noticePort is the port of the stream that carries notices.
const noticePort = 0

// noticeTimeout is how long a peer may leave its notices unread.
const noticeTimeout = 30 * time.Second

// maxEarly bounds notices about streams that this side has not seen yet.
const maxEarly = 4096

// yamuxConfig is yamux without timers of its own, except that a write fails when the pipe takes nothing for
// so long.
func yamuxConfig(writeTimeout time.Duration) *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          maxStreams, // with fewer, opening a stream would block on a guest that accepts none
		KeepAliveInterval:      time.Hour,  // unused, but must not be zero
		ConnectionWriteTimeout: writeTimeout,
		MaxStreamWindowSize:    windowSize,
		LogOutput:              io.Discard, // what ends a session is an error of Client and Server
	}
}

// links knows the open streams of a session and carries notices about them.
type links struct {
	session *yamux.Session
	notices *yamux.Stream

	mu    sync.Mutex
	open  map[uint32]*stream
	last  uint32 // the highest id that was added
	early map[uint32]struct{}
}

func newLinks(session *yamux.Session, notices *yamux.Stream) *links {
	return &links{
		session: session, notices: notices,
		open: make(map[uint32]*stream), early: make(map[uint32]struct{}), last: notices.StreamID(),
	}
}

// add registers a stream. Streams are added in the order in which they were opened.
func (l *links) add(ys *yamux.Stream) *stream {
	id := ys.StreamID()
	s := &stream{Stream: ys, links: l}
	l.mu.Lock()
	l.open[id], l.last = s, id
	_, early := l.early[id]
	delete(l.early, id)
	l.mu.Unlock()
	if early {
		s.readerGone()
	}
	return s
}

func (l *links) remove(id uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, id)
}

// readNotices acts on the peer's notices until the session ends.
func (l *links) readNotices() error {
	for {
		id, err := readUint32(l.notices)
		if err != nil {
			return err
		}
		l.mu.Lock()
		s := l.open[id]
		if s == nil && id > l.last && len(l.early) < maxEarly {
			l.early[id] = struct{}{}
		}
		l.mu.Unlock()
		if s != nil {
			s.readerGone()
		}
	}
}

// notify tells the peer that nobody reads a stream any more. A peer that does not take notices does not keep
// to the protocol, and loses the session.
func (l *links) notify(id uint32) {
	l.notices.SetWriteDeadline(time.Now().Add(noticeTimeout))
	if err := writeUint32(l.notices, id); err != nil {
		l.session.Close()
	}
}

// stream is a yamux stream with the manners of a net.Conn.
type stream struct {
	*yamux.Stream
	links  *links
	closed atomic.Bool
	eof    atomic.Bool
}

// Read reads what the peer wrote. It returns EOF after the peer's end of writing alone: a VM that dies gives
// ECONNRESET.
func (s *stream) Read(p []byte) (int, error) {
	if s.closed.Load() {
		return 0, s.failure("read", net.ErrClosed)
	}
	n, err := s.Stream.Read(p)
	if err == nil {
		return n, nil
	}
	if err == io.EOF && !s.links.session.IsClosed() {
		s.eof.Store(true)
		return n, io.EOF
	}
	return n, s.failure("read", err)
}

func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	if err != nil {
		err = s.failure("write", err)
	}
	return n, err
}

// CloseWrite sends the end of this side's bytes.
func (s *stream) CloseWrite() error { return s.Stream.Close() }

// Close ends both directions. The peer still reads what was written.
func (s *stream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.links.remove(s.StreamID())
	err := s.Stream.Close()
	s.Stream.SetReadDeadline(time.Unix(1, 0)) // wakes a blocked Read
	if s.eof.Load() || s.links.session.IsClosed() {
		return err
	}
	s.links.notify(s.StreamID())
	return err
}

// readerGone ends this side's writing because nobody reads it. It wakes a blocked Write.
func (s *stream) readerGone() { s.Stream.Close() }

// failure turns an error of yamux into what a socket would say.
func (s *stream) failure(op string, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed):
	case s.links.session.IsClosed():
		err = os.NewSyscallError(op, syscall.ECONNRESET)
		if op == "write" {
			err = os.NewSyscallError(op, syscall.EPIPE)
		}
	case s.closed.Load():
		err = net.ErrClosed
	case errors.Is(err, yamux.ErrTimeout):
		err = os.ErrDeadlineExceeded
	case errors.Is(err, yamux.ErrStreamClosed):
		err = os.NewSyscallError(op, syscall.EPIPE)
	case errors.Is(err, yamux.ErrConnectionReset):
		err = os.NewSyscallError(op, syscall.ECONNRESET)
	}
	return &net.OpError{Op: op, Net: "virtio-serial", Source: s.LocalAddr(), Addr: s.RemoteAddr(), Err: err}
}

// readUint32 decodes a port or a stream id.
func readUint32(r io.Reader) (uint32, error) {
	var b [4]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(b[:]), nil
}

func writeUint32(w io.Writer, v uint32) error {
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, v)); err != nil {
		return fmt.Errorf("write %d: %w", v, err)
	}
	return nil
}
