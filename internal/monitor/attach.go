package monitor

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/stdio"
	"github.com/pistis-run/pistis/internal/task"
)

// Attach joins the stdio of a process and returns when its output has ended, or ctx. An exec is attached once, before its
// start. It does not wait for a Read of Stdin that is under way: the caller closes its reader.
func (c *Client) Attach(ctx context.Context, id task.ID, streams task.Stdio) error {
	if id.Exec != "" {
		e := c.execution(id)
		if e == nil {
			return fmt.Errorf("%s: %w", name(id), errdefs.ErrNotFound)
		}
		return e.Execution.Attach(ctx, streams)
	}
	conn, files, err := c.open(ctx, Request{Verb: VerbAttach, ID: id}, AttachArgs{
		Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil,
	}, nil)
	if err != nil {
		return err
	}
	closeAll(files)
	if err := stdio.Join(ctx, conn, stdio.Streams(streams)); err != nil {
		return fmt.Errorf("attach to %s: %w", name(id), err)
	}
	return nil
}

func name(id task.ID) string {
	if id.Exec == "" {
		return "container " + id.Container
	}
	return "exec " + id.Exec + " in container " + id.Container
}
