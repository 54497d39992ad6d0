package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/pistis-run/pistis/internal/version"
)

// exitInterrupted is a shell's exit code for what ^C ended.
const exitInterrupted = 130

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
	case ctx.Err() != nil && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled):
		return exitInterrupted // who pressed ^C knows it
	default:
		fmt.Fprintln(a.err, "pistis:", sentence(err))
		return 1
	}
}

// transportWords is what gRPC puts before the daemon's own words.
var transportWords = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// sentence takes the transport's words off errors of the daemon.
func sentence(err error) string { return transportWords.ReplaceAllString(err.Error(), "") }

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
		a.completes(a.runCommand(), true, imageNames),
		a.psCommand(), a.podsCommand(), a.eventsCommand(), a.topCommand(),
		a.completes(a.execCommand(), true, containerNames),
		a.completes(a.attachCommand(), true, containerNames),
		a.completes(a.logsCommand(), true, containerNames),
		a.completes(a.stopCommand(), false, podNames, containerNames),
		a.completes(a.rmCommand(), false, podNames, containerNames),
		a.imagesCommand(), a.pullCommand(),
		a.completes(a.rmiCommand(), false, imageNames),
		a.importCommand(),
		a.completes(a.exportCommand(), false, imageNames),
		a.completes(a.statsCommand(), false, containerNames),
		a.completes(a.inspectCommand(), true, podNames, containerNames, imageNames),
		a.completes(a.portForwardCommand(), true, podNames),
		a.pruneCommand(), a.wipeCommand(), a.infoCommand(), a.doctorCommand(), a.guestCommand(),
	)
	return root
}
