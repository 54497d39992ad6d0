package share

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/transport"
)

const (
	device = "/dev/fuse"
	// minMessage is a reply without a body.
	minMessage = 16
	streamBuf  = 32 << 10
)

// Mount is a FUSE file system whose server is at the other end of a stream.
type Mount struct {
	path      string
	dev       *transport.Eager
	eagerness *transport.Eagerness

	repeat    repeater
	loans     loans
	ahead     ahead
	writing   sync.Mutex // to the stream
	answering sync.Mutex // the kernel
}

// New mounts a file system at path, which is made: a directory, or with file a regular file. The server is asked only
// when somebody uses the mount. Large messages leave their data in memory, if it is not nil. On error nothing is left.
func New(path string, file bool, eagerness *transport.Eagerness, memory *Memory) (_ *Mount, err error) {
	mode := uint32(unix.S_IFDIR)
	if file {
		mode = unix.S_IFREG
	}
	if err := makePoint(path, file); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("the guest's kernel has no FUSE: %s: %w", device, err)
	}
	// Permissions are the kernel's to check; devices of the host are not the guest's.
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, mode, agentv1.MaxShareWrite)
	if err := unix.Mount("pistis", path, "fuse", unix.MS_NODEV, data); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("mount share at %s: %w", path, err)
	}
	dev, err := eagerness.Adopt(fd)
	if err != nil {
		unix.Close(fd)
		return nil, errors.Join(err, unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	return &Mount{
		path: path, dev: dev, eagerness: eagerness,
		repeat: repeater{path: path, changes: make(chan *agentv1.ShareChange, 1)},
		loans:  loans{memory: memory, pieces: map[uint64]uint32{}},
		ahead:  ahead{changing: map[uint64]struct{}{}},
	}, nil
}

func makePoint(path string, file bool) error {
	if !file {
		return os.Mkdir(path, 0o700)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// Relay carries messages until the file system is unmounted, Close is called or the stream ends, which it closes. The
// error is nil after an unmount. With unanswered the server knows requests that want no answer.
func (m *Mount) Relay(stream io.ReadWriteCloser, unanswered bool) error {
	if eager, err := m.eagerness.Conn(stream); err != nil {
		return fmt.Errorf("stream of a share: %w", err)
	} else if eager != nil {
		stream.Close() // what is left of it is eager
		stream = eager
	}
	in := make(chan error, 1)
	go func() {
		err := m.replies(stream)
		m.Close() // wakes requests
		in <- err
	}()
	repeated := make(chan struct{})
	go func() {
		defer close(repeated)
		m.repeat.run(func() error { return m.send(stream, answer()) })
	}()
	err := m.requests(stream, unanswered)
	m.Close()
	stream.Close() // wakes replies
	replyErr := <-in
	close(m.repeat.changes)
	<-repeated
	if err == nil {
		return nil
	}
	return errors.Join(err, replyErr)
}

// requests carries what the kernel asks. One read is one message.
func (m *Mount) requests(stream io.Writer, unanswered bool) error {
	out := newOutgoing()
	for {
		n, err := m.next(out)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
			continue // that request was given up
		case errors.Is(err, os.ErrDeadlineExceeded):
			err = m.send(stream, out.all(0))
		case err == nil:
			err = m.carry(stream, out, n, unanswered)
		case isOver(err):
			return nil
		default:
			err = fmt.Errorf("read requests: %w", err)
		}
		if err != nil {
			return err
		}
	}
}

// next reads a request.
func (m *Mount) next(out *outgoing) (int, error) {
	if len(out.held) == 0 {
		return m.dev.Read(out.room())
	}
	return m.dev.ReadWithin(out.room(), out.patience(time.Now()))
}

// carry answers a request, holds it, or sends it.
func (m *Mount) carry(stream io.Writer, out *outgoing, n int, unanswered bool) error {
	request := out.room()[:n]
	m.repeat.mark(request)
	answer := m.ahead.request(request, time.Now)
	holds := answer == nil && unanswered && holdable(request)
	if holds {
		answer = closed(request)
	}
	if answer != nil {
		if err := m.answer(answer); err != nil && !isOver(err) { // if it is, the next read says so
			return err
		}
	}
	switch {
	case holds && out.hold(request, time.Now), !holds && answer != nil:
		return nil
	case holds:
		return m.send(stream, out.all(n))
	}
	return m.send(stream, out.all(len(m.loans.place(request))))
}

func (m *Mount) send(stream io.Writer, frame []byte) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	if _, err := stream.Write(frame); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// answer tells the kernel an answer. That nobody waits for it any more is no error.
func (m *Mount) answer(frame []byte) error {
	m.answering.Lock()
	defer m.answering.Unlock()
	_, err := m.dev.Write(frame)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return fmt.Errorf("answer: %w", err)
}

// isOver tells the error of a mount that has ended.
func isOver(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EPERM) || errors.Is(err, os.ErrClosed)
}

// replies carries what the server answers. One write is one message.
func (m *Mount) replies(stream io.Reader) error {
	r := bufio.NewReaderSize(stream, streamBuf)
	buf := frameBuffer(0, minMessage)
	for begun := false; ; {
		frame, err := readFrame(r, buf)
		if err != nil {
			return fmt.Errorf("receive reply: %w", err)
		}
		switch {
		case isChange(frame):
			if err := m.repeat.take(frame); err != nil {
				return err
			}
			continue
		case isAttributes(frame):
			if err := m.ahead.take(frame, time.Now()); err != nil {
				return err
			}
			continue
		}
		m.ahead.answered(frame)
		if frame, err = m.loans.collect(frame, buf); err != nil {
			return err
		}
		err = m.answer(frame)
		switch {
		case err == nil && !begun:
			begun = true
			m.readAhead() // now the kernel has agreed on everything with the server
		case isOver(err):
			return nil
		case err != nil:
			return err
		}
	}
}

// readAhead lets the kernel ask for more than it is asked for, so that several messages are on their way when a file is
// read from one end to the other. Without it a share works too.
func (m *Mount) readAhead() {
	const kib = "1024"
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == m.path {
			_ = os.WriteFile("/sys/class/bdi/"+fields[2]+"/read_ahead_kb", []byte(kib), 0)
		}
	}
}

// readFrame reads one message, whose first four bytes are its length, into buf.
func readFrame(r io.Reader, buf []byte) ([]byte, error) {
	if _, err := io.ReadFull(r, buf[:4]); err != nil {
		return nil, err
	}
	n := binary.NativeEndian.Uint32(buf) &^ agentv1.ShareInMemory
	if n < minMessage || n > uint32(len(buf)) {
		return nil, fmt.Errorf("a message of %d bytes: %d to %d are possible", n, minMessage, len(buf))
	}
	_, err := io.ReadFull(r, buf[4:n])
	return buf[:n], err
}

// Unmount writes back what is cached and unmounts. The error is unix.EBUSY while the mount is used.
func (m *Mount) Unmount() error {
	m.repeat.working.Lock()
	defer m.repeat.working.Unlock()
	err := unix.Unmount(m.path, unix.UMOUNT_NOFOLLOW)
	m.repeat.over = err == nil
	return err
}

// Close makes the file system answer everything with an error. It is idempotent.
func (m *Mount) Close() { m.dev.Close() }

// Remove takes the mount point away, whether or not it is still mounted.
func (m *Mount) Remove() error {
	err := unix.Unmount(m.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		err = nil
	}
	rm := os.Remove(m.path)
	if errors.Is(rm, os.ErrNotExist) {
		rm = nil
	}
	return errors.Join(err, rm)
}
