package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containerd/log"
	"go.opentelemetry.io/otel/trace/noop"
	cri "k8s.io/cri-api/pkg/apis"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
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
			log.G(ctx).WithError(err).Debug("close connection")
		}
	}
}

// pod finds the sandbox that a person means: a name, an id or an unambiguous beginning of one.
func (c *client) pod(ctx context.Context, what string) (*runtime.PodSandbox, error) {
	pods, err := c.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, err
	}
	var found []*runtime.PodSandbox
	for _, p := range pods {
		if p.Id == what || p.Metadata.GetName() == what {
			return p, nil
		}
		if strings.HasPrefix(p.Id, what) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("no pod %q: `pistis pods` lists them", what)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%q is the beginning of %d pods' ids: give more of it", what, len(found))
}

// container finds a container by name, id or beginning of an id; a pod's name stands for its newest container.
func (c *client) container(ctx context.Context, what string) (*runtime.Container, error) {
	containers, err := c.ListContainers(ctx, nil)
	if err != nil {
		return nil, err
	}
	var named, prefixed []*runtime.Container
	for _, ctr := range containers {
		switch {
		case ctr.Id == what:
			return ctr, nil
		case ctr.Metadata.GetName() == what:
			named = append(named, ctr)
		case strings.HasPrefix(ctr.Id, what):
			prefixed = append(prefixed, ctr)
		}
	}
	if len(named) == 0 {
		named = prefixed
	}
	if len(named) == 0 {
		if pod, err := c.pod(ctx, what); err == nil {
			for _, ctr := range containers {
				if ctr.PodSandboxId == pod.Id {
					named = append(named, ctr)
				}
			}
			if newest := newestOf(named); newest != nil {
				return newest, nil
			}
		}
	}
	switch len(named) {
	case 0:
		return nil, fmt.Errorf("no container %q: `pistis ps -a` lists them", what)
	case 1:
		return named[0], nil
	}
	return nil, fmt.Errorf("%d containers match %q: give an id", len(named), what)
}

func newestOf(containers []*runtime.Container) *runtime.Container {
	var newest *runtime.Container
	for _, c := range containers {
		if newest == nil || c.CreatedAt > newest.CreatedAt {
			newest = c
		}
	}
	return newest
}
