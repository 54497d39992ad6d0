package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/pistis-run/pistis/internal/guestimage"
)

func (a *app) guestCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "guest", Short: "The kernel and initrd that VM pods boot"}
	cmd.AddCommand(a.guestBuildCommand())
	return cmd
}

func (a *app) guestBuildCommand() *cobra.Command {
	var o guestimage.Options
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Build the guest from the distribution's kernel package, or from a kernel that is given",
		Long: "Build downloads the distribution's cloud kernel package without installing it, with a package configuration of its own,\n" +
			"and makes an initrd with the agent, runc and the modules that a guest needs. With the same inputs it does nothing.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, program := range []struct {
				path *string
				name string
			}{{&o.Agent, "pistis-agent"}, {&o.Runc, "runc"}} {
				if *program.path == "" {
					found, err := guestProgram(program.name)
					if err != nil {
						return err
					}
					*program.path = found
				}
			}
			if a.output == "" {
				o.Progress = func(line string) { fmt.Fprintln(a.err, line) }
			}
			guest, err := guestimage.Build(cmd.Context(), o)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return printValue(a.out, guest)
			}
			fmt.Fprintf(a.out, "kernel  %s (%s, from %s)\ninitrd  %s (%d modules)\n", guest.Kernel, guest.KernelVersion, guest.Source, guest.Initrd, len(guest.Modules))
			if guest.ModulesDisk != "" {
				fmt.Fprintf(a.out, "modules %s (loaded on demand)\n", guest.ModulesDisk)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "dir", "/var/lib/pistis/guest", "where to put it; pistisd looks there")
	f.StringVar(&o.Agent, "agent", "", "static pistis-agent (default: found beside this command)")
	f.StringVar(&o.Runc, "runc", "", "static runc for the guest (default: found beside this command)")
	f.StringVar(&o.Kernel, "kernel", "", "a bzImage or vmlinux instead of the distribution's")
	f.StringVar(&o.ModulesDir, "modules", "", "its /lib/modules/VERSION, where it has modules")
	f.StringSliceVar(&o.ExtraModules, "module", nil, "a kernel module that guests load besides those they need")
	f.StringVar(&o.Package, "package", "", "the kernel package (default "+guestimage.DefaultPackage()+")")
	f.BoolVar(&o.KeepKernel, "keep-kernel", false, "keep the unpacked kernel, so that the next build needs no download")
	f.BoolVar(&o.Refresh, "refresh", false, "look for a newer package")
	return cmd
}

// guestProgram finds a program for the guest where it is installed: in guest/ beside this command, or in
// ../lib/pistis/guest.
func guestProgram(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	dir := filepath.Dir(self)
	for _, path := range []string{filepath.Join(dir, "guest", name), filepath.Join(dir, "..", "lib", "pistis", "guest", name)} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return "", fmt.Errorf("no %s for the guest beside %s: name it with a flag, or install Pistis with `make install`", name, self)
}
