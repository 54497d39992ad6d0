package shimclient

import (
	"context"
	"fmt"
	"io"
	"net"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

// open opens a stream to the shim and exchanges header and reply.
func (c *Client) open(ctx context.Context, header *shimv1.StreamHeader) (_ *net.UnixConn, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.dir.StreamSocket())
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: open stream: %w: %w", c.id, err, errdefs.ErrUnavailable)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if !stop() && err == nil {
			err = ctx.Err()
		}
		if err != nil {
			conn.Close()
		}
	}()
	var reply shimv1.StreamReply
	err = agentv1.WriteMessage(conn, header)
	if err == nil {
		err = agentv1.ReadMessage(conn, &reply)
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("sandbox %s: open stream: %w", c.id, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("sandbox %s: open stream: %w: %w", c.id, err, errdefs.ErrUnavailable)
	case reply.Code != 0:
		return nil, errgrpc.ToNative(status.Error(codes.Code(reply.Code), reply.Error))
	}
	return conn.(*net.UnixConn), nil
}

// Dial connects to an address inside the guest. The connection is a net.Conn that can be closed in one direction.
func (c *Client) Dial(ctx context.Context, network, address string) (io.ReadWriteCloser, error) {
	conn, err := c.open(ctx, &shimv1.StreamHeader{Kind: &shimv1.StreamHeader_Dial{
		Dial: &shimv1.DialStream{Network: network, Address: address},
	}})
	if err != nil {
		return nil, err // not a typed nil
	}
	return conn, nil
}

// Attach joins the stdio of a process and returns when its output has ended, or ctx. It does not wait for a Read of
// Stdin that is under way: the caller closes its reader.
func (c *Client) Attach(ctx context.Context, id task.ID, streams task.Stdio) error {
	conn, err := c.open(ctx, &shimv1.StreamHeader{Kind: &shimv1.StreamHeader_Attach{Attach: &shimv1.AttachStream{
		Container: id.Container, Exec: id.Exec,
		Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil,
	}}})
	if err != nil {
		return err
	}
	if err := stdio.Join(ctx, conn, stdio.Streams(streams)); err != nil {
		return fmt.Errorf("sandbox %s: attach: %w", c.id, err)
	}
	return nil
}
