package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cri-client/pkg/logs"
)

func (a *app) logsCommand() *cobra.Command {
	var (
		follow, timestamps bool
		tail               int64
		since              time.Duration
	)
	cmd := &cobra.Command{
		Use:   "logs [-f] CONTAINER",
		Short: "Show a container's output",
		Args:  cobra.ExactArgs(1),
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			ctr, err := c.container(ctx, args[0])
			if err != nil {
				return err
			}
			opts := &logs.LogOptions{Follow: follow, Timestamp: timestamps}
			if tail >= 0 {
				opts.TailLines = &tail
			}
			if since > 0 {
				opts.Since = time.Now().Add(-since)
			}
			if a.output == "json" {
				opts.Timestamp = true
				stdout, stderr := &jsonLines{to: a.out, stream: "stdout"}, &jsonLines{to: a.out, stream: "stderr"}
				return errors.Join(c.readLogs(ctx, ctr.Id, opts, stdout, stderr), stdout.close(), stderr.close())
			}
			return c.readLogs(ctx, ctr.Id, opts, a.out, a.err)
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the container ends")
	cmd.Flags().BoolVar(&timestamps, "timestamps", false, "with the time of each line")
	cmd.Flags().Int64Var(&tail, "tail", -1, "only that many lines from the end")
	cmd.Flags().DurationVar(&since, "since", 0, "only what is younger, as 10m")
	return cmd
}

// readLogs copies a container's log file. The file is on this host: so is the daemon.
func (c *client) readLogs(ctx context.Context, id string, opts *logs.LogOptions, stdout, stderr io.Writer) error {
	status, err := c.ContainerStatus(ctx, id, false)
	if err != nil {
		return err
	}
	path := status.Status.GetLogPath()
	if _, err := os.Stat(path); err != nil {
		return err
	}
	err = logs.ReadLogs(ctx, path, id, opts, c.RuntimeService, stdout, stderr)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
