package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/endpoint"
)

// crowd is many pods at once.
type crowd struct {
	daemon   *endpoint.Endpoint
	image    string
	pods     []endpoint.Pod
	parallel int
}

// run starts the pods, asks for all that a node asks for, restarts and kills the daemon, and removes the pods.
func (c *crowd) run(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"start", c.start},
		{"ListPodSandbox, ListContainers, ContainerStatus of all", c.served},
		{"ListContainerStats", c.containerStats},
		{"ListPodSandboxStats", c.sandboxStats},
		{"ListPodSandboxMetrics", c.metrics},
		{"ExecSync in all", c.execs},
		{"an exit's event", c.event},
		{"restart until all are served", c.restart(c.daemon.Stop)},
		{"ExecSync in all", c.execs},
		{"kill -9 and start until all are served", c.restart(c.daemon.Kill)},
		{"ExecSync in all", c.execs},
		{"an exit's event", c.event},
		{"memory", c.memory},
		{"stop and remove", c.remove},
	} {
		begin := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%d pods: %s: %w", len(c.pods), step.what, err)
		}
		fmt.Printf("%d pods: %s: %v\n", len(c.pods), step.what, time.Since(begin).Round(time.Millisecond))
	}
	return nil
}

// forEach runs fn for all pods, several at a time.
func (c *crowd) forEach(ctx context.Context, fn func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.parallel)
	for i := range c.pods {
		group.Go(func() error { return fn(ctx, i) })
	}
	return group.Wait()
}

func (c *crowd) start(ctx context.Context) error {
	return c.forEach(ctx, func(ctx context.Context, i int) (err error) {
		c.pods[i], err = c.daemon.Run(ctx, "runc", fmt.Sprintf("c%05d", i), c.image, "sleep", "1000000")
		return err
	})
}

func (c *crowd) served(ctx context.Context) error { return c.daemon.Served(ctx, len(c.pods)) }

func (c *crowd) containerStats(ctx context.Context) error {
	resp, err := c.daemon.ListContainerStats(ctx, &runtime.ListContainerStatsRequest{})
	return c.complete(len(resp.GetStats()), err)
}

func (c *crowd) sandboxStats(ctx context.Context) error {
	resp, err := c.daemon.ListPodSandboxStats(ctx, &runtime.ListPodSandboxStatsRequest{})
	return c.complete(len(resp.GetStats()), err)
}

func (c *crowd) metrics(ctx context.Context) error {
	resp, err := c.daemon.ListPodSandboxMetrics(ctx, &runtime.ListPodSandboxMetricsRequest{})
	if status.Code(err) == codes.Unimplemented {
		fmt.Println("ListPodSandboxMetrics is not built yet")
		return nil
	}
	return c.complete(len(resp.GetPodMetrics()), err)
}

func (c *crowd) complete(got int, err error) error {
	if err == nil && got != len(c.pods) {
		err = fmt.Errorf("%d entries for %d pods", got, len(c.pods))
	}
	return err
}

func (c *crowd) execs(ctx context.Context) error {
	return c.forEach(ctx, func(ctx context.Context, i int) error {
		resp, err := c.daemon.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: c.pods[i].Container, Cmd: []string{"hostname"}, Timeout: 60})
		if err == nil && string(resp.Stdout) != c.pods[i].Config.Hostname+"\n" {
			err = fmt.Errorf("pod %s says that it is %q", c.pods[i].Config.Hostname, resp.Stdout)
		}
		return err
	})
}

// event wants the events of a further container's life, in their order, from a daemon with many pods.
func (c *crowd) event(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.daemon.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		return err
	}
	if _, err := stream.Header(); err != nil { // it listens
		return err
	}
	p := c.pods[0]
	config := endpoint.Container(c.image, []string{"sh", "-c", "exit 7"})
	config.Metadata.Name = "further"
	config.LogPath = "further/0.log"
	created, err := c.daemon.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.Sandbox, SandboxConfig: p.Config, Config: config})
	if err != nil {
		return err
	}
	if _, err := c.daemon.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return err
	}
	wanted := []runtime.ContainerEventType{
		runtime.ContainerEventType_CONTAINER_CREATED_EVENT, runtime.ContainerEventType_CONTAINER_STARTED_EVENT, runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	}
	for len(wanted) > 0 {
		e, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("waiting for %v: %w", wanted[0], err)
		}
		if e.ContainerId != created.ContainerId {
			continue
		}
		if e.ContainerEventType != wanted[0] {
			return fmt.Errorf("event %v instead of %v", e.ContainerEventType, wanted[0])
		}
		wanted = wanted[1:]
	}
	_, err = c.daemon.RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: created.ContainerId})
	return err
}

func (c *crowd) restart(end func() error) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := errors.Join(end(), c.daemon.Launch()); err != nil {
			return err
		}
		return c.daemon.Poll(ctx, "all pods to be served", c.served)
	}
}

func (c *crowd) memory(context.Context) error {
	own, err := endpoint.PSS(c.daemon.PID())
	if err != nil {
		return err
	}
	helpers, err := c.daemon.Helpers()
	if err != nil {
		return err
	}
	used, err := endpoint.PSS(helpers...)
	fmt.Printf("daemon %.1f MB PSS, %d monitors with %.2f MB each\n", own, len(helpers), used/float64(len(c.pods)))
	return err
}

func (c *crowd) remove(ctx context.Context) error {
	return c.forEach(ctx, func(ctx context.Context, i int) error {
		return errors.Join(c.daemon.Remove(ctx, c.pods[i].Sandbox), os.RemoveAll(c.pods[i].Config.LogDirectory))
	})
}
