package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Show what works on this host, what does not and why, and what to do",
		Long: "Doctor looks at the host itself and needs no daemon. The first time it may boot a small guest, to see whether KVM\n" +
			"really works. The exit code is 1 when something is missing that pods cannot do without.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.LoadOrDefault(path)
			if err != nil {
				return err
			}
			return a.report(doctor.Run(cmd.Context(), doctor.Options{Config: cfg}))
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "pistisd's configuration file (default: "+config.DefaultPath+" where it exists)")
	return cmd
}

// report prints findings, and fails for those with which pods cannot run.
func (a *app) report(checks []doctor.Check) error {
	failed := 0
	var rows [][]string
	for _, c := range checks {
		if !c.OK {
			failed++
		}
		rows = append(rows, []string{c.Name, string(c.Level), strings.ReplaceAll(c.Detail, "\n", "; "), c.Advice})
	}
	var err error
	if a.output == "json" {
		err = printValue(a.out, checks)
	} else {
		err = table(a.out, "CHECK RESULT FOUND ADVICE", rows)
	}
	if err != nil || failed == 0 {
		return err
	}
	return fmt.Errorf("%d of %d checks failed: pods cannot be run before they pass", failed, len(checks))
}
