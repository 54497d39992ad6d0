package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) podsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "pods",
		Short: "List pods",
		Args:  cobra.NoArgs,
		RunE: a.connected(func(ctx context.Context, c *client, _ []string) error {
			pods, err := c.ListPodSandbox(ctx, nil)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return printJSON(a.out, pods)
			}
			slices.SortFunc(pods, func(x, y *runtime.PodSandbox) int { return int(y.CreatedAt - x.CreatedAt) })
			var rows [][]string
			for _, p := range pods {
				state := strings.ToLower(strings.TrimPrefix(p.State.String(), "SANDBOX_"))
				rows = append(rows, []string{short(p.Id), p.Metadata.GetName(), p.Metadata.GetNamespace(), p.RuntimeHandler, state, ago(p.CreatedAt)})
			}
			return table(a.out, "POD NAME NAMESPACE HANDLER STATE CREATED", rows)
		}),
	}
}

func (a *app) psCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List containers: those that run, or all with -a",
		Args:  cobra.NoArgs,
		RunE: a.connected(func(ctx context.Context, c *client, _ []string) error {
			var filter *runtime.ContainerFilter
			if !all {
				filter = &runtime.ContainerFilter{State: &runtime.ContainerStateValue{State: runtime.ContainerState_CONTAINER_RUNNING}}
			}
			containers, err := c.ListContainers(ctx, filter)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return printJSON(a.out, containers)
			}
			slices.SortFunc(containers, func(x, y *runtime.Container) int { return int(y.CreatedAt - x.CreatedAt) })
			var rows [][]string
			for _, ctr := range containers {
				state := strings.ToLower(strings.TrimPrefix(ctr.State.String(), "CONTAINER_"))
				rows = append(rows, []string{short(ctr.Id), ctr.Metadata.GetName(), ctr.Image.GetUserSpecifiedImage(), state,
					fmt.Sprint(ctr.Metadata.GetAttempt()), short(ctr.PodSandboxId), ago(ctr.CreatedAt)})
			}
			return table(a.out, "CONTAINER NAME IMAGE STATE ATTEMPT POD CREATED", rows)
		}),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those that ended or were not started")
	return cmd
}

func (a *app) statsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stats [CONTAINER...]",
		Short: "Show what running containers use",
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			stats, err := c.stats(ctx)
			if err != nil {
				return err
			}
			if len(args) > 0 {
				want := map[string]bool{}
				for _, arg := range args {
					ctr, err := c.container(ctx, arg)
					if err != nil {
						return err
					}
					want[ctr.Id] = true
				}
				stats = slices.DeleteFunc(stats, func(s *runtime.ContainerStats) bool { return !want[s.Attributes.GetId()] })
			}
			if a.output == "json" {
				return printJSON(a.out, stats)
			}
			var rows [][]string
			for _, s := range stats {
				rows = append(rows, []string{short(s.Attributes.GetId()), s.Attributes.GetMetadata().GetName(),
					cores(s.Cpu),
					fmt.Sprintf("%.2f s", float64(s.Cpu.GetUsageCoreNanoSeconds().GetValue())/1e9),
					size(s.Memory.GetWorkingSetBytes().GetValue()), size(s.WritableLayer.GetUsedBytes().GetValue())})
			}
			return table(a.out, "CONTAINER NAME CORES CPU MEMORY WRITABLE", rows)
		}),
	}
}

// stats asks a second time, after a moment, where the daemon cannot tell yet how busy a container is: that takes two
// samples, and on a node without a kubelet nobody asked before.
func (c *client) stats(ctx context.Context) ([]*runtime.ContainerStats, error) {
	stats, err := c.ListContainerStats(ctx, nil)
	if err != nil || !slices.ContainsFunc(stats, func(s *runtime.ContainerStats) bool { return s.Cpu.GetUsageNanoCores() == nil }) {
		return stats, err
	}
	select {
	case <-time.After(time.Second):
		return c.ListContainerStats(ctx, nil)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// cores is a CPU rate for people.
func cores(c *runtime.CpuUsage) string {
	if c.GetUsageNanoCores() == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", float64(c.UsageNanoCores.Value)/1e9)
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect POD|CONTAINER|IMAGE",
		Short: "Show everything known about a pod, a container or an image, as JSON",
		Args:  cobra.ExactArgs(1),
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			if pod, err := c.pod(ctx, args[0]); err != nil && !isUnknown(err) {
				return err
			} else if err == nil {
				resp, err := c.PodSandboxStatus(ctx, pod.Id, true)
				if err != nil {
					return err
				}
				return printJSON(a.out, []*runtime.PodSandboxStatusResponse{resp})
			}
			if ctr, err := c.container(ctx, args[0]); err != nil && !isUnknown(err) {
				return err
			} else if err == nil {
				resp, err := c.ContainerStatus(ctx, ctr.Id, true)
				if err != nil {
					return err
				}
				return printJSON(a.out, []*runtime.ContainerStatusResponse{resp})
			}
			resp, err := c.images.ImageStatus(ctx, &runtime.ImageSpec{Image: args[0]}, true)
			if err != nil {
				return err
			}
			if resp.Image == nil {
				return fmt.Errorf("no pod, container or image %q", args[0])
			}
			return printJSON(a.out, []*runtime.ImageStatusResponse{resp})
		}),
	}
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info",
		Short: "Show what the daemon says of itself, as JSON",
		Args:  cobra.NoArgs,
		RunE: a.connected(func(ctx context.Context, c *client, _ []string) error {
			resp, err := c.Status(ctx, true)
			if err != nil {
				return err
			}
			return printJSON(a.out, []*runtime.StatusResponse{resp})
		}),
	}
}
