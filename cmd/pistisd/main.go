// Command pistisd is the CRI daemon: flags → configuration → daemon.Run.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/daemon"
	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/version"
)

func main() {
	// A second signal is not caught: whoever sends it does not want to wait for calls that run.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "pistisd:", err)
		os.Exit(1)
	}
}

type flags struct{ config, root, state, socket, logLevel string }

func command() *cobra.Command {
	var f flags
	root := &cobra.Command{
		Use: "pistisd", Short: "Serve the CRI and run pods as microVMs", Version: version.Version, Args: cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true,
		RunE: f.with(daemon.Run),
	}
	p := root.PersistentFlags()
	p.StringVar(&f.config, "config", "", "configuration file (default: "+config.DefaultPath+" where it exists)")
	p.StringVar(&f.root, "root", "", "directory of what survives a reboot, instead of the configuration's")
	p.StringVar(&f.state, "state", "", "run directory, instead of the configuration's; the socket goes there too")
	p.StringVar(&f.socket, "socket", "", "Unix socket to serve, instead of the configuration's")
	p.StringVar(&f.logLevel, "log-level", "", "debug, info, warn or error, instead of the configuration's")
	configCommand := &cobra.Command{Use: "config", Short: "Show configurations", Args: cobra.NoArgs}
	configCommand.AddCommand(&cobra.Command{
		Use: "default", Short: "Print the default configuration file, with every key explained", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := os.Stdout.Write(config.DefaultFile())
			return err
		},
	})
	root.AddCommand(configCommand, f.wipeCommand())
	return root
}

// with calls fn with the configuration and the log that the flags ask for.
func (f *flags) with(fn func(context.Context, config.Config, *slog.Logger) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := failpoint.Check(); err != nil {
			return err
		}
		cfg, err := f.load()
		if err != nil {
			return err
		}
		return fn(cmd.Context(), cfg, daemon.OpenLog(cfg.Log))
	}
}

func (f *flags) load() (config.Config, error) {
	cfg, err := config.LoadOrDefault(f.config)
	if err != nil {
		return cfg, err
	}
	if f.state != "" {
		cfg.State, cfg.Socket = f.state, filepath.Join(f.state, "pistisd.sock")
	}
	for flag, target := range map[*string]*string{&f.root: &cfg.Root, &f.socket: &cfg.Socket, &f.logLevel: &cfg.Log.Level} {
		if *flag != "" {
			*target = *flag
		}
	}
	return cfg, cfg.Validate()
}
