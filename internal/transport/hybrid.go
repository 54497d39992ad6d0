package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Hybrid dials the guest's vsock ports through a Unix socket of the VMM, as Firecracker and Cloud Hypervisor
// offer it.
// These end the stream when the host half-closes it, so that they are good for one pipe, and for DirectPort, and not for other streams.
type Hybrid struct{ Path string }

// maxHybridReply bounds the VMM's answer: "OK ", a 32-bit number and a line feed.
const maxHybridReply = 16

// Dial connects to a port of the guest and retries while the VMM or the guest is starting, until ctx ends.
func (h Hybrid) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return retry(ctx, port, func(ctx context.Context) (net.Conn, error) { return h.connect(ctx, port) })
}

func (h Hybrid) connect(ctx context.Context, port uint32) (net.Conn, error) {
	conn, err := dialSocket(ctx, h.Path)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	_, err = fmt.Fprintf(conn, "CONNECT %d\n", port)
	if err == nil {
		_, err = readHybridReply(conn)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		return conn, nil
	}
	conn.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil, fmt.Errorf("%w: the VMM closed the connection", errRefused)
	}
	return nil, err
}

// dialSocket connects to a socket in a directory that belongs to a VMM, and follows no link that it may have put there.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var d net.Dialer
	return d.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
}

// readHybridReply reads "OK n\n" and nothing after it: what follows belongs to the stream.
func readHybridReply(r io.Reader) (hostPort uint32, err error) {
	var line [maxHybridReply]byte
	for n := range line {
		if _, err := io.ReadFull(r, line[n:n+1]); err != nil {
			return 0, err
		}
		if line[n] != '\n' {
			continue
		}
		digits, ok := strings.CutPrefix(string(line[:n]), "OK ")
		v, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil {
			return 0, fmt.Errorf("vsock handshake: unexpected answer %q", line[:n])
		}
		return uint32(v), nil
	}
	return 0, fmt.Errorf("vsock handshake: answer %q is not a line of at most %d bytes", line[:], maxHybridReply)
}

// Pipe is a pipe to the guest's PipePort, which is dialled in the background of what is first read.
func (h Hybrid) Pipe() io.ReadWriteCloser {
	p := &hybridPipe{}
	p.life, p.end = context.WithCancel(context.Background())
	p.dial = sync.OnceValues(func() (net.Conn, error) { return h.Dial(p.life, PipePort) })
	return p
}

// Beside dials DirectPort through the VMM's socket, and other ports through the pipe that all others share.
func (h Hybrid) Beside(pipe *Client) func(ctx context.Context, port uint32) (net.Conn, error) {
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		if port == DirectPort {
			return h.Dial(ctx, port)
		}
		return pipe.Dial(ctx, port)
	}
}

// hybridPipe is a connection that is made when it is first used.
type hybridPipe struct {
	life context.Context
	end  context.CancelFunc
	dial func() (net.Conn, error)
}

func (p *hybridPipe) Read(b []byte) (int, error) {
	conn, err := p.dial()
	if err != nil {
		return 0, err
	}
	return conn.Read(b)
}

func (p *hybridPipe) Write(b []byte) (int, error) {
	conn, err := p.dial()
	if err != nil {
		return 0, err
	}
	return conn.Write(b)
}

// Close ends a dial that is under way.
func (p *hybridPipe) Close() error {
	p.end()
	conn, err := p.dial()
	if err != nil {
		return nil // there is nothing to close
	}
	return conn.Close()
}
