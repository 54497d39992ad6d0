package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/test/endpoint"
)

const (
	// codesOfOwn is how many exit codes the containers have, from 1: none is one that the daemon gives by itself.
	codesOfOwn = 120
	// patience bounds one pod's life. Emulated guests want most of it.
	patience = 10 * time.Minute
	// growth is how much larger the daemon may be at the end of its last life than at the end of its first, in MB.
	growth = 8
)

// soak lets pods come and go.
type soak struct {
	amounts
	daemon *endpoint.Endpoint
	image  string

	mu    sync.Mutex
	done  int
	lives []life
	begin time.Time // of the daemon's life
}

// life is one of the daemon's.
type life struct {
	pods   int
	took   time.Duration
	memory float64 // PSS at its end, in MB
}

func newSoak(daemon *endpoint.Endpoint, image string, n amounts) *soak {
	return &soak{amounts: n, daemon: daemon, image: image}
}

func (s *soak) run(ctx context.Context) error {
	s.begin = time.Now()
	group, cycles := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	for i := range s.cycles {
		group.Go(func() error {
			if err := s.cycle(cycles, i); err != nil {
				return fmt.Errorf("pod %d: %w", i, err)
			}
			return s.count()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	fmt.Printf("%d pods, %d at a time: every exit code came\n", s.done, s.parallel)
	return errors.Join(s.empty(ctx), s.flat())
}

// count ends a life of the daemon when that has seen its share of pods. Calls that are under way fail then.
func (s *soak) count() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done++
	share := s.kill
	if share == 0 {
		share = max(s.cycles/10, 1)
	}
	if s.done%share != 0 {
		return nil
	}
	used, err := endpoint.PSS(s.daemon.PID())
	if err != nil {
		return err
	}
	l := life{pods: share, took: time.Since(s.begin), memory: used}
	s.lives = append(s.lives, l)
	fmt.Printf("%5d pods: %d in %v, daemon %.1f MB PSS\n", s.done, l.pods, l.took.Round(100*time.Millisecond), l.memory)
	if s.kill > 0 && s.done < s.cycles {
		if err := errors.Join(s.daemon.Kill(), s.daemon.Launch()); err != nil {
			return err
		}
	}
	s.begin = time.Now()
	return nil
}

// handler of a pod: the VMs are spread, the others take turns.
func (s *soak) handler(i int) string {
	if s.vms > 0 && i%s.vms == s.vms/2 {
		return "vm"
	}
	return s.handlers[i%len(s.handlers)]
}

// cycle is a pod's life, with the daemon dying at any moment of it.
func (s *soak) cycle(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	code := int32(1 + i%codesOfOwn)
	name := fmt.Sprintf("p%05d", i)
	// They end after different times, many of them while there is no daemon.
	command := []string{"sh", "-c", fmt.Sprintf("echo %s; sleep 0.%d; exit %d", name, i%10, code)}
	p, err := s.start(ctx, i, name, command)
	if err != nil {
		return err
	}
	exited, err := s.exit(ctx, p.Container)
	if err != nil {
		return err
	}
	if exited.ExitCode != code || exited.FinishedAt == 0 {
		return fmt.Errorf("%s: exit code %d instead of %d: %s: %s", s.handler(i), exited.ExitCode, code, exited.Reason, exited.Message)
	}
	log, err := os.ReadFile(p.Log())
	if err != nil {
		return err
	}
	if strings.Count(string(log), name) != 1 {
		return fmt.Errorf("log is %q instead of one line with %s", log, name)
	}
	err = s.again(ctx, func() error { return s.daemon.Remove(ctx, p.Sandbox) })
	return errors.Join(err, os.RemoveAll(p.Config.LogDirectory))
}

// again repeats a call whose answer was lost with the daemon. The next call waits for the next daemon.
func (s *soak) again(ctx context.Context, call func() error) error {
	for {
		err := call()
		if code := status.Code(err); code != codes.Unavailable || ctx.Err() != nil {
			return err
		}
	}
}

// start starts a pod, going on from where a daemon died: what it had made is there, what it had half made is not.
func (s *soak) start(ctx context.Context, i int, name string, command []string) (endpoint.Pod, error) {
	p := s.daemon.Pod(name)
	err := s.again(ctx, func() error {
		found, err := s.daemon.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{LabelSelector: p.Config.Labels}})
		if err != nil {
			return err
		}
		if len(found.Items) > 0 {
			p.Sandbox = found.Items[0].Id
			return nil
		}
		resp, err := s.daemon.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: s.handler(i)})
		p.Sandbox = resp.GetPodSandboxId()
		return err
	})
	if err != nil {
		return p, fmt.Errorf("RunPodSandbox: %w", err)
	}
	err = s.again(ctx, func() error {
		found, err := s.daemon.ListContainers(ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: p.Sandbox}})
		if err != nil {
			return err
		}
		if len(found.Containers) > 0 {
			p.Container = found.Containers[0].Id
			return nil
		}
		resp, err := s.daemon.CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.Sandbox, SandboxConfig: p.Config, Config: endpoint.Container(s.image, command)})
		p.Container = resp.GetContainerId()
		return err
	})
	if err != nil {
		return p, fmt.Errorf("CreateContainer: %w", err)
	}
	err = s.again(ctx, func() error {
		found, err := s.daemon.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: p.Container})
		if err != nil || found.Status.State != runtime.ContainerState_CONTAINER_CREATED {
			return err
		}
		_, err = s.daemon.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.Container})
		return err
	})
	if err != nil {
		return p, fmt.Errorf("StartContainer: %w", err)
	}
	return p, nil
}

// exit waits for the end of a container. It asks again and again, as an event would be lost with the daemon.
func (s *soak) exit(ctx context.Context, container string) (*runtime.ContainerStatus, error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var got *runtime.ContainerStatusResponse
		err := s.again(ctx, func() (err error) {
			got, err = s.daemon.ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: container})
			return err
		})
		if err != nil || got.Status.State == runtime.ContainerState_CONTAINER_EXITED {
			return got.GetStatus(), err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the exit: %w", ctx.Err())
		}
	}
}

// empty wants no pods and no containers in the daemon's lists.
func (s *soak) empty(ctx context.Context) error {
	pods, err := s.daemon.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := s.daemon.ListContainers(ctx, &runtime.ListContainersRequest{})
	if err != nil {
		return err
	}
	if len(pods.Items) > 0 || len(containers.Containers) > 0 {
		return fmt.Errorf("%d pods and %d containers are left in the lists", len(pods.Items), len(containers.Containers))
	}
	return nil
}

// flat wants the daemon's memory at the end of its last life not to be much above that of its first.
func (s *soak) flat() error {
	if len(s.lives) < 2 {
		return nil
	}
	first, last := s.lives[0].memory, s.lives[len(s.lives)-1].memory
	fmt.Printf("daemon: %.1f MB PSS at the end of its first life, %.1f MB at the end of its last\n", first, last)
	if last > first+growth {
		return fmt.Errorf("the daemon grew from %.1f to %.1f MB", first, last)
	}
	return nil
}
