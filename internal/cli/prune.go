package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// prunable is one thing that nobody uses.
type prunable struct {
	Kind  string `json:"kind"` // pod, container or image
	ID    string `json:"id"`
	Name  string `json:"name"`
	Bytes uint64 `json:"bytes,omitempty"` // of an image; what it shares with others stays

	remove func(context.Context) error
}

func (a *app) pruneCommand() *cobra.Command {
	var dry, yes bool
	cmd := &cobra.Command{
		Use:   "prune --yes|--dry-run",
		Short: "Remove pods and containers that have ended, and images that nobody uses",
		Long: "Prune removes pods that do not run, containers that have ended, and images that no container that stays uses or\n" +
			"mounts. Pinned images stay, and so does what runs. With a kubelet, mind that it may want to read logs of what has ended.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dry == yes {
				return fmt.Errorf("prune removes things: say --yes, or see with --dry-run what it would remove")
			}
			ctx := cmd.Context()
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer c.close(ctx)
			list, err := c.unused(ctx)
			if err != nil {
				return err
			}
			var failures error
			if yes {
				list, failures = prune(ctx, list)
			}
			return errors.Join(a.reportPruned(list), failures)
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only say what would be removed")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "remove it")
	return cmd
}

// prune removes what it can, and returns what it has removed.
func prune(ctx context.Context, list []prunable) (removed []prunable, err error) {
	for _, p := range list {
		if failure := p.remove(ctx); failure != nil {
			err = errors.Join(err, fmt.Errorf("%s %s: %w", p.Kind, p.Name, failure))
			continue
		}
		removed = append(removed, p)
	}
	return removed, err
}

func (a *app) reportPruned(list []prunable) error {
	if a.output == "json" {
		return printValue(a.out, append([]prunable{}, list...))
	}
	var rows [][]string
	for _, p := range list {
		bytes := "-"
		if p.Bytes > 0 {
			bytes = size(p.Bytes)
		}
		rows = append(rows, []string{p.Kind, p.Name, short(p.ID), bytes})
	}
	return table(a.out, "KIND NAME ID SIZE", rows)
}

// unused is what can be pruned, in the order in which it has to be.
func (c *client) unused(ctx context.Context) ([]prunable, error) {
	pods, err := c.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, err
	}
	containers, err := c.ListContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	var list []prunable
	doomed := map[string]bool{}
	for _, p := range pods {
		if p.State != runtime.PodSandboxState_SANDBOX_READY {
			doomed[p.Id] = true
			list = append(list, prunable{Kind: "pod", ID: p.Id, Name: p.Metadata.GetName(), remove: func(ctx context.Context) error { return c.removePod(ctx, p.Id) }})
		}
	}
	used := map[string]bool{}
	for _, ctr := range containers {
		switch {
		case doomed[ctr.PodSandboxId]:
		case ctr.State == runtime.ContainerState_CONTAINER_EXITED:
			list = append(list, prunable{Kind: "container", ID: ctr.Id, Name: ctr.Metadata.GetName(), remove: func(ctx context.Context) error { return c.RemoveContainer(ctx, ctr.Id) }})
		default:
			if err := c.markUsed(ctx, ctr, used); err != nil {
				return nil, err
			}
		}
	}
	images, err := c.images.ListImages(ctx, nil)
	if err != nil {
		return nil, err
	}
	for _, img := range images {
		if img.Pinned || used[img.Id] {
			continue
		}
		list = append(list, prunable{
			Kind: "image", ID: img.Id, Name: imageName(img), Bytes: img.Size,
			remove: func(ctx context.Context) error { return c.images.RemoveImage(ctx, &runtime.ImageSpec{Image: img.Id}) },
		})
	}
	return list, nil
}

// markUsed adds the ids of the images that a container runs and mounts.
func (c *client) markUsed(ctx context.Context, ctr *runtime.Container, used map[string]bool) error {
	used[ctr.ImageId] = true
	status, err := c.ContainerStatus(ctx, ctr.Id, false)
	if err != nil {
		return err
	}
	for _, m := range status.Status.GetMounts() {
		if m.GetImage().GetImage() == "" {
			continue
		}
		img, err := c.images.ImageStatus(ctx, m.Image, false)
		if err != nil {
			return err
		}
		used[img.GetImage().GetId()] = true
	}
	return nil
}

func imageName(img *runtime.Image) string {
	for _, names := range [][]string{img.RepoTags, img.RepoDigests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return "<none>"
}
