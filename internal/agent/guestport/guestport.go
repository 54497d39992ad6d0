// Package guestport chooses, in the guest, what carries the streams of the host, and listens there.
//
// A [Carrier] owns the device and its session until Close. The package imports internal/transport and
// internal/agent/uevent only.
package guestport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/pistis-run/pistis/internal/agent/uevent"
	"github.com/pistis-run/pistis/internal/transport"
)

// deviceTimeout bounds the wait for the carrier's device, and for the host at its other end.
const deviceTimeout = time.Minute

// acceptPause is how long a guest without files or memory waits before it accepts again.
const acceptPause = 100 * time.Millisecond

// Carrier is an open way to the host.
type Carrier struct {
	listen func(port uint32) (net.Listener, error)
	close  func() error
	done   <-chan struct{}
}

// Listen accepts streams of the host, and of nobody else, to a port. Every stream has CloseWrite, as those of package transport.
func (c *Carrier) Listen(port uint32) (net.Listener, error) { return c.listen(port) }

// Done is closed when the host's end has gone for good; a carrier that cannot tell never closes it.
func (c *Carrier) Done() <-chan struct{} { return c.done }

// Close ends all streams.
func (c *Carrier) Close() error { return c.close() }

// Open waits for the device of a kind, or for the first of any kind where kind is empty, and opens it.
func Open(ctx context.Context, kind string) (*Carrier, error) {
	missing := errors.New("missing")
	ctx, cancel := context.WithTimeoutCause(ctx, deviceTimeout, missing)
	defer cancel()
	if kind == "" {
		err := uevent.Wait(ctx, func() (bool, error) {
			switch {
			case hasSerial("/sys/class/virtio-ports"):
				kind = transport.KindSerial
			case hasVSOCK():
				kind = transport.KindVSOCK
			}
			return kind != "", nil
		})
		if errors.Is(err, missing) {
			return nil, fmt.Errorf("transport: neither a vsock device nor a serial port %s within %v", transport.SerialPort, deviceTimeout)
		}
		if err != nil {
			return nil, err
		}
	}
	switch kind {
	case transport.KindVSOCK:
		return &Carrier{listen: listenVSOCK, close: func() error { return nil }}, nil
	case transport.KindSerial:
		return openSerial(ctx)
	case transport.KindPipe:
		pipe, err := transport.AcceptPipe(ctx)
		if err != nil {
			return nil, err
		}
		return serveBeside(ctx, pipe)
	}
	return nil, fmt.Errorf("transport %q: there are %s, %s and %s", kind, transport.KindVSOCK, transport.KindSerial, transport.KindPipe)
}

func openSerial(ctx context.Context) (*Carrier, error) {
	port, err := transport.OpenSerialPort(ctx)
	if err != nil {
		return nil, err
	}
	return serve(ctx, port)
}

// serve shares a pipe among streams.
func serve(ctx context.Context, pipe io.ReadWriteCloser) (*Carrier, error) {
	s, err := transport.NewServer(ctx, pipe)
	if err != nil {
		return nil, err
	}
	return &Carrier{listen: s.Listen, close: s.Close, done: s.Done()}, nil
}

// serveBeside shares a pipe among streams but those that have connections of their own.
func serveBeside(ctx context.Context, pipe io.ReadWriteCloser) (*Carrier, error) {
	c, err := serve(ctx, pipe)
	if err != nil {
		return nil, err
	}
	shared := c.listen
	c.listen = func(port uint32) (net.Listener, error) {
		if port == transport.DirectPort {
			return listenVSOCK(port)
		}
		return shared(port)
	}
	return c, nil
}

func hasSerial(class string) bool {
	found, _ := filepath.Glob(filepath.Join(class, "*/name"))
	for _, path := range found {
		if name, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(name)) == transport.SerialPort {
			return true
		}
	}
	return false
}

// hasVSOCK tells a device that reaches the host from the bare protocol, whose context id is not known.
func hasVSOCK() bool {
	cid, err := vsock.ContextID()
	return err == nil && cid != ^uint32(0) && cid > vsock.Host
}

func listenVSOCK(port uint32) (net.Listener, error) {
	l, err := transport.ListenVSOCK(port)
	if err != nil {
		return nil, err
	}
	return hostOnly{l}, nil
}

// hostOnly drops connections of processes in the guest: sockets of this family know no namespaces. Containers that use
// up the guest's files or memory do not end it.
type hostOnly struct{ net.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if transport.IsExhausted(err) {
			time.Sleep(acceptPause) // nothing tells when there is more
			continue
		}
		if err != nil {
			return nil, err
		}
		if addr, ok := conn.RemoteAddr().(*vsock.Addr); ok && addr.ContextID == vsock.Host {
			return conn, nil
		}
		conn.Close()
	}
}
