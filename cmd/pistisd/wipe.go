package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/daemon"
)

func (f *flags) wipeCommand() *cobra.Command {
	var yes, images bool
	cmd := &cobra.Command{
		Use: "wipe --yes", Short: "End all pods of a daemon that does not run, and remove what it made on this host", Args: cobra.NoArgs,
		Long: "Wipe removes all pods with their namespaces, cgroups, bridge and rules, and everything below the run directory.\n" +
			"With --images also what is below the root directory: images, layers and records. The guest stays in any case.",
		RunE: f.with(func(ctx context.Context, cfg config.Config, log *slog.Logger) error {
			if !yes {
				return fmt.Errorf("wipe ends all pods below %s and removes them: say --yes", cfg.Root)
			}
			if images {
				return daemon.WipeAll(ctx, cfg, log)
			}
			return daemon.Wipe(ctx, cfg, log)
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "yes, all pods")
	cmd.Flags().BoolVar(&images, "images", false, "images and their layers too")
	return cmd
}
