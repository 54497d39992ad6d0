package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.opentelemetry.io/otel/trace/noop"
	cri "k8s.io/cri-api/pkg/apis"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"

	"github.com/pistis-run/pistis/internal/logfields"
)

// callTimeout bounds a CRI call: a VM under emulation may take its time, a daemon that hangs must not.
const callTimeout = 5 * time.Minute

// client is one connection's two services.
type client struct {
	cri.RuntimeService
	images cri.ImageManagerService
}

// connect reaches the daemon; the error says what to do when it is not there.
func (a *app) connect(ctx context.Context) (*client, error) {
	if _, err := os.Stat(a.socket); err != nil {
		return nil, fmt.Errorf("no daemon at %s: start pistisd, or name its socket with --socket or PISTIS_SOCKET", a.socket)
	}
	endpoint := "unix://" + a.socket
	rt, err := remote.NewRemoteRuntimeService(ctx, endpoint, callTimeout, noop.NewTracerProvider(), false)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a.socket, err)
	}
	images, err := remote.NewRemoteImageService(ctx, endpoint, callTimeout, noop.NewTracerProvider(), false)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", a.socket, err)
	}
	return &client{RuntimeService: rt, images: images}, nil
}

func (c *client) close(ctx context.Context) {
	for _, close := range []func(context.Context) error{c.RuntimeService.Close, c.images.Close} {
		if err := close(ctx); err != nil {
			slog.DebugContext(ctx, "close connection", logfields.Error, err)
		}
	}
}

// connected is a command's RunE: it runs with a connection, which ends with it.
func (a *app) connected(run func(ctx context.Context, c *client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		c, err := a.connect(ctx)
		if err != nil {
			return err
		}
		defer c.close(ctx)
		return run(ctx, c, args)
	}
}

// unknown says that there is no pod or container of a name, which may be something else's.
type unknown string

func (u unknown) Error() string { return string(u) }

func isUnknown(err error) bool {
	var u unknown
	return errors.As(err, &u)
}

// pod finds the sandbox that a person means: a name, an id or an unambiguous beginning of one. Of several of one name
// it is the one that is ready.
func (c *client) pod(ctx context.Context, what string) (*runtime.PodSandbox, error) {
	pods, err := c.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, err
	}
	found := choose(pods, what, func(p *runtime.PodSandbox) candidate {
		return candidate{id: p.Id, name: p.Metadata.GetName(), live: p.State == runtime.PodSandboxState_SANDBOX_READY}
	})
	switch len(found) {
	case 0:
		return nil, unknown(fmt.Sprintf("no pod %q: `pistis pods` lists them", what))
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d pods match %q: give an id", len(found), what)
}

// container finds a container by name, id or beginning of an id; a pod's name stands for its newest container. Of
// several of one name it is the one that runs.
func (c *client) container(ctx context.Context, what string) (*runtime.Container, error) {
	containers, err := c.ListContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	found := choose(containers, what, func(ctr *runtime.Container) candidate {
		return candidate{id: ctr.Id, name: ctr.Metadata.GetName(), live: ctr.State == runtime.ContainerState_CONTAINER_RUNNING}
	})
	switch len(found) {
	case 0:
		return c.newestOf(ctx, what, containers)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%d containers match %q: give an id", len(found), what)
}

// newestOf is the newest container of the pod that a person means.
func (c *client) newestOf(ctx context.Context, pod string, containers []*runtime.Container) (*runtime.Container, error) {
	none := unknown(fmt.Sprintf("no container %q: `pistis ps -a` lists them", pod))
	p, err := c.pod(ctx, pod)
	if isUnknown(err) {
		return nil, none
	} else if err != nil {
		return nil, err
	}
	var newest *runtime.Container
	for _, ctr := range containers {
		if ctr.PodSandboxId == p.Id && (newest == nil || ctr.CreatedAt > newest.CreatedAt) {
			newest = ctr
		}
	}
	if newest == nil {
		return nil, none
	}
	return newest, nil
}

// candidate is what a person can call a pod or a container by.
type candidate struct {
	id, name string
	live     bool
}

// choose returns what a person may mean: by id, else by name, else by the beginning of an id; several only where
// nothing tells them apart. Nothing is meant by an empty word, as a script's empty variable is.
func choose[T any](list []T, what string, describe func(T) candidate) []T {
	var named, live, prefixed []T
	for _, one := range list {
		c := describe(one)
		switch {
		case what == "":
		case c.id == what:
			return []T{one}
		case c.name == what:
			named = append(named, one)
			if c.live {
				live = append(live, one)
			}
		case strings.HasPrefix(c.id, what):
			prefixed = append(prefixed, one)
		}
	}
	switch {
	case len(live) == 1:
		return live
	case len(named) > 0:
		return named
	}
	return prefixed
}
