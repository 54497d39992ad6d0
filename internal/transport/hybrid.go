package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Hybrid dials the guest's vsock ports through a Unix socket of the VMM, as Firecracker and Cloud Hypervisor
// offer it.
type Hybrid struct {
	Path string
	// Ended tells whether the VMM has ended or is about to; nil where nobody knows. A stream that ends then was cut off.
	Ended func() bool
}

// maxHybridReply bounds the VMM's answer: "OK ", a 32-bit number and a line feed.
const maxHybridReply = 16

// Dial connects to a port of the guest and retries while the VMM or the guest is starting, until ctx ends.
func (h Hybrid) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return retry(ctx, port, func(ctx context.Context) (net.Conn, error) { return h.connect(ctx, port) })
}

func (h Hybrid) connect(ctx context.Context, port uint32) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", h.Path)
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
		return &hybridStream{UnixConn: conn.(*net.UnixConn), ended: h.Ended}, nil
	}
	conn.Close()
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return nil, fmt.Errorf("%w: the VMM closed the connection", errRefused)
	}
	return nil, err
}

// hybridStream ends with an error where the VMM does.
type hybridStream struct {
	*net.UnixConn
	ended func() bool
}

func (s *hybridStream) Read(p []byte) (int, error) {
	n, err := s.UnixConn.Read(p)
	if err == io.EOF && s.ended != nil && s.ended() {
		err = fmt.Errorf("the VMM has ended: %w", syscall.ECONNRESET)
	}
	return n, err
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
