package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) stopCommand() *cobra.Command {
	var grace int64
	cmd := &cobra.Command{
		Use:   "stop POD|CONTAINER...",
		Short: "Stop pods, or single containers",
		Args:  cobra.MinimumNArgs(1),
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			return a.each(args, func(what string) error {
				pod, err := c.pod(ctx, what)
				switch {
				case err == nil:
					return c.stopPod(ctx, pod.Id, grace)
				case isUnknown(err):
					return c.stopContainer(ctx, what, grace)
				}
				return err
			})
		}),
	}
	cmd.Flags().Int64Var(&grace, "grace", 10, "seconds between the stop signal and the kill")
	return cmd
}

// stopPod gives the pod's containers their grace first: with the pod they are killed.
func (c *client) stopPod(ctx context.Context, id string, grace int64) error {
	containers, err := c.ListContainers(ctx, &runtime.ContainerFilter{PodSandboxId: id})
	if err != nil {
		return err
	}
	for _, ctr := range containers {
		if err := c.StopContainer(ctx, ctr.Id, grace); err != nil {
			return err
		}
	}
	return c.StopPodSandbox(ctx, id)
}

func (c *client) stopContainer(ctx context.Context, what string, grace int64) error {
	ctr, err := c.container(ctx, what)
	if isUnknown(err) {
		return fmt.Errorf("no pod or container %q: `pistis pods` and `pistis ps -a` list them", what)
	} else if err != nil {
		return err
	}
	return c.StopContainer(ctx, ctr.Id, grace)
}

func (a *app) rmCommand() *cobra.Command {
	var force, all bool
	cmd := &cobra.Command{
		Use:   "rm POD|CONTAINER...",
		Short: "Remove pods, or single containers; running ones with -f",
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			if all {
				pods, err := c.ListPodSandbox(ctx, nil)
				if err != nil {
					return err
				}
				for _, p := range pods {
					args = append(args, p.Id)
				}
			} else if len(args) == 0 {
				return fmt.Errorf("name pods or containers, or use --all")
			}
			return a.each(args, func(what string) error {
				pod, err := c.pod(ctx, what)
				switch {
				case isUnknown(err):
					return c.removeContainer(ctx, what, force)
				case err != nil:
					return err
				case pod.State == runtime.PodSandboxState_SANDBOX_READY && !force:
					return fmt.Errorf("pod %s runs: stop it first, or use -f", what)
				}
				return c.removePod(ctx, pod.Id)
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also what runs")
	cmd.Flags().BoolVar(&all, "all", false, "all pods")
	return cmd
}
