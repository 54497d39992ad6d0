package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// completeTimeout bounds what a person waits for after a tab.
const completeTimeout = 2 * time.Second

// names lists what an argument can be called.
type names func(ctx context.Context, c *client) ([]string, error)

// completes has the shell offer names for a command's arguments: for all of them, or for the first alone where what
// follows is something else's. Without a daemon it offers nothing.
func (a *app) completes(cmd *cobra.Command, first bool, kinds ...names) *cobra.Command {
	offer := a.offer(kinds...)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
		if first && len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return offer(cmd, args, toComplete)
	}
	return cmd
}

func (a *app) offer(kinds ...names) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
		defer cancel()
		c, err := a.connect(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		defer c.close(ctx)
		var all []string
		for _, list := range kinds {
			found, err := list(ctx, c)
			if err != nil {
				return nil, cobra.ShellCompDirectiveError
			}
			all = append(all, found...)
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

func podNames(ctx context.Context, c *client) ([]string, error) {
	pods, err := c.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, err
	}
	return collect(pods, func(p *runtime.PodSandbox) []string { return []string{p.Metadata.GetName()} }), nil
}

func containerNames(ctx context.Context, c *client) ([]string, error) {
	containers, err := c.ListContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	return collect(containers, func(ctr *runtime.Container) []string { return []string{ctr.Metadata.GetName()} }), nil
}

func imageNames(ctx context.Context, c *client) ([]string, error) {
	images, err := c.images.ListImages(ctx, nil)
	if err != nil {
		return nil, err
	}
	return collect(images, func(i *runtime.Image) []string { return i.RepoTags }), nil
}

func handlerNames(ctx context.Context, c *client) ([]string, error) {
	status, err := c.Status(ctx, false)
	if err != nil {
		return nil, err
	}
	return collect(status.RuntimeHandlers, func(h *runtime.RuntimeHandler) []string { return []string{h.Name} }), nil
}

func collect[T any](list []T, of func(T) []string) []string {
	var all []string
	for _, one := range list {
		for _, name := range of(one) {
			if name != "" {
				all = append(all, name)
			}
		}
	}
	return all
}
