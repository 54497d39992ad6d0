package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/pistis-run/pistis/internal/version"
)

// exitError ends the command with a process's exit code and prints nothing more.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// app is what all commands share.
type app struct {
	socket string
	output string
	in     *os.File
	out    io.Writer
	err    io.Writer
}

// Main runs the command line and returns the exit code: 0, 1 for an error, or that of the container's process.
func Main() int {
	// The second signal is not caught: whoever presses ^C twice wants out.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)

	a := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	err := a.command().ExecuteContext(ctx)
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	default:
		fmt.Fprintln(a.err, "pistis:", sentence(err))
		return 1
	}
}

// sentence takes the transport's words off an error of the daemon.
func sentence(err error) string {
	if s, ok := status.FromError(err); ok && s.Message() != "" {
		return s.Message()
	}
	return err.Error()
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:           "pistis",
		Short:         "Run and look after pods as microVMs",
		Version:       version.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			// The CRI client logs every error that it returns, too.
			cmd.SetContext(klog.NewContext(cmd.Context(), logr.Discard()))
			if a.output != "" && a.output != "json" {
				return fmt.Errorf("output format %q: use json, or leave it out for a table", a.output)
			}
			return nil
		},
	}
	socket := os.Getenv("PISTIS_SOCKET")
	if socket == "" {
		socket = "/run/pistis/pistisd.sock"
	}
	root.PersistentFlags().StringVar(&a.socket, "socket", socket, "the daemon's socket (PISTIS_SOCKET)")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "", "output format: json")
	root.AddCommand(
		a.runCommand(), a.psCommand(), a.podsCommand(), a.execCommand(), a.attachCommand(), a.logsCommand(),
		a.stopCommand(), a.rmCommand(), a.imagesCommand(), a.pullCommand(), a.rmiCommand(),
		a.importCommand(), a.exportCommand(), a.statsCommand(), a.inspectCommand(), a.portForwardCommand(),
		a.pruneCommand(), a.wipeCommand(), a.infoCommand(), a.doctorCommand(), a.guestCommand(),
	)
	return root
}
