package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"
)

// wipeCommand is the daemon's own, which has to be done when none runs: here for who looks for it.
func (a *app) wipeCommand() *cobra.Command {
	var config string
	var yes, images bool
	cmd := &cobra.Command{
		Use:   "wipe --yes",
		Short: "End all pods of a daemon that does not run, and remove what it made on this host",
		Long:  "Wipe is `pistisd wipe`: it removes all pods, and with --images all else that pistisd keeps but the guest.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			program, err := daemonProgram()
			if err != nil {
				return err
			}
			args := []string{"wipe"}
			if config != "" {
				args = append(args, "--config", config)
			}
			for flag, set := range map[string]bool{"--yes": yes, "--images": images} {
				if set {
					args = append(args, flag)
				}
			}
			wipe := exec.CommandContext(cmd.Context(), program, args...)
			wipe.Stdout, wipe.Stderr = a.out, a.err
			// It is asked to end and not killed, so that it ends what it is at.
			wipe.Cancel = func() error { return wipe.Process.Signal(os.Interrupt) }
			err = wipe.Run()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return exitError(exit.ExitCode()) // it has said why
			}
			return err
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "pistisd's configuration file (default: its own)")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "yes, all pods")
	cmd.Flags().BoolVar(&images, "images", false, "images and their layers too")
	return cmd
}

// daemonProgram finds pistisd beside this command, or on PATH.
func daemonProgram() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), "pistisd")); err == nil {
		return path, nil
	}
	path, err := exec.LookPath("pistisd")
	if err != nil {
		return "", fmt.Errorf("pistisd is neither beside this command nor on PATH: %w", err)
	}
	return path, nil
}
