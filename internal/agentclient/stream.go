package agentclient

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/transport"
)

// Stream is a byte stream into the guest. CloseWrite ends the bytes of the host and leaves those of the guest.
type Stream interface {
	net.Conn
	CloseWrite() error
}

// OpenStdio opens one file descriptor of a process that was created and not started.
func (c *Client) OpenStdio(ctx context.Context, id task.ID, fd agentv1.StdioStream_FD) (Stream, error) {
	s, err := c.open(ctx, &agentv1.StreamHeader{Kind: &agentv1.StreamHeader_Stdio{
		Stdio: &agentv1.StdioStream{Container: id.Container, Exec: id.Exec, Fd: fd},
	}})
	if err != nil {
		return nil, fmt.Errorf("guest: %s: %w", strings.ToLower(fd.String()), err)
	}
	return s, nil
}

// Dial connects to an address in the guest: tcp or unix.
func (c *Client) Dial(ctx context.Context, network, address string) (Stream, error) {
	s, err := c.open(ctx, &agentv1.StreamHeader{Kind: &agentv1.StreamHeader_Dial{
		Dial: &agentv1.DialStream{Network: network, Address: address},
	}})
	if err != nil {
		return nil, fmt.Errorf("guest: %w", err)
	}
	return s, nil
}

// OpenShare has the guest mount what the host will serve over the stream: a directory, or a regular file.
func (c *Client) OpenShare(ctx context.Context, id string, file bool) (Stream, error) {
	if err := c.needs(agentv1.FeatureShares, "volumes"); err != nil {
		return nil, fmt.Errorf("mount share in guest: %w", err)
	}
	port := uint32(agentv1.StreamPort)
	if c.Has(agentv1.FeatureDirectShares) {
		port = transport.DirectPort
	}
	s, err := c.openAt(ctx, port, &agentv1.StreamHeader{Kind: &agentv1.StreamHeader_Share{Share: &agentv1.ShareStream{Id: id, File: file, Unanswered: true}}})
	if err != nil {
		return nil, fmt.Errorf("mount share in guest: %w", err)
	}
	return s, nil
}

// open opens a stream through the stream port.
func (c *Client) open(ctx context.Context, header *agentv1.StreamHeader) (Stream, error) {
	return c.openAt(ctx, agentv1.StreamPort, header)
}

// openAt dials a port and exchanges header and reply.
func (c *Client) openAt(ctx context.Context, port uint32, header *agentv1.StreamHeader) (_ Stream, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	conn, err := c.dial(ctx, port)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err == nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			conn.Close()
		}
	}()
	stream, ok := conn.(Stream)
	if !ok {
		return nil, fmt.Errorf("a %T cannot be closed in one direction", conn)
	}
	if err := agentv1.WriteMessage(conn, header); err != nil {
		return nil, orCause(ctx, err)
	}
	var reply agentv1.StreamReply
	if err := agentv1.ReadMessage(conn, &reply); err != nil {
		return nil, orCause(ctx, fmt.Errorf("read reply: %w", err))
	}
	if reply.Error != "" || reply.Code != 0 {
		return nil, guestError(reply.Error, codes.Code(reply.Code))
	}
	return stream, nil
}

// orCause prefers why ctx ended to the error that its end made.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return fmt.Errorf("no answer: %w", cause)
	}
	return err
}
