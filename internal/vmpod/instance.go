package vmpod

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/errdefs"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/shimclient"
	"github.com/pistis-run/pistis/internal/task"
)

// stopTimeout is how long a guest may take to power off by itself.
const stopTimeout = 10 * time.Second

// shims are the shim processes of this host.
type shims interface {
	launch(ctx context.Context, req launchRequest) (client, error)
	connect(ctx context.Context, bundle string) (client, error)
	// cleanup kills and removes what a shim, dead or alive, has left, and the bundle. Idempotent.
	cleanup(ctx context.Context, bundle string) error
}

type launchRequest struct {
	shim, id, bundle, netns string
	options                 *shimv1.SandboxOptions
	annotations             map[string]string
	// prepare makes what the VM needs, beside the start of the shim.
	prepare func() error
	// adopt makes the VM's cgroup with the shim in it; nil: the shim makes it.
	adopt func(pid int) error
}

// client is the connection to one shim. Its dynamic type has the optional interfaces of package task too.
type client interface {
	task.Service
	WaitSandbox(ctx context.Context) (task.Exit, error)
	Info(ctx context.Context) (*shimv1.InfoResponse, error)
	Stop(ctx context.Context, timeout time.Duration) error
	Kill(ctx context.Context) error
	Close() error
}

// phase of a VM's start.
type phase struct {
	name string
	took time.Duration
}

// instance is one running VM.
type instance struct {
	client client
	info   map[string]string
	phases []phase // of its start
	// vcpus and memory are what it has, size what a pod's VM would get now.
	vcpus  uint32
	memory uint64
	size   func(sandbox.Config) (vcpus uint32, memoryBytes uint64)
}

// Resize accepts what the VM has room for. It keeps what it has beyond that.
func (i *instance) Resize(_ context.Context, cfg sandbox.Config) error {
	vcpus, memory := i.size(cfg)
	if vcpus <= i.vcpus && memory <= i.memory {
		return nil
	}
	const mib = 1 << 20
	return fmt.Errorf("the pod's microVM has %d processors and %d MiB of memory, and would need %d and %d MiB; it cannot grow while it runs: make the pod anew with these resources: %w",
		i.vcpus, i.memory/mib, vcpus, memory/mib, errdefs.ErrFailedPrecondition)
}

func (i *instance) Tasks() task.Service { return i.client }

func (i *instance) Wait(ctx context.Context) (string, error) {
	exit, err := i.client.WaitSandbox(ctx)
	return exit.Reason, err
}

// Stop powers the guest off, and kills the VM when that takes too long.
func (i *instance) Stop(ctx context.Context) error {
	err := i.client.Stop(ctx, stopTimeout)
	if err == nil {
		return nil
	}
	return errors.Join(err, i.client.Kill(ctx))
}

func (i *instance) Info() map[string]string { return maps.Clone(i.info) }
func (i *instance) Close() error            { return i.client.Close() }

// shimProcesses are the real shims.
type shimProcesses struct{}

func (shimProcesses) launch(ctx context.Context, r launchRequest) (client, error) {
	c, err := shimclient.Launch(ctx, shimclient.LaunchConfig{
		Binary: r.shim, ID: r.id, Dir: r.bundle, NetNS: r.netns, Options: r.options, Annotations: r.annotations, Prepare: r.prepare, Adopt: r.adopt,
	})
	if err != nil {
		return nil, err // not a typed nil
	}
	return c, nil
}

func (shimProcesses) connect(ctx context.Context, bundle string) (client, error) {
	c, err := shimclient.Connect(ctx, bundle)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (shimProcesses) cleanup(ctx context.Context, bundle string) error {
	return shimclient.Cleanup(ctx, bundle)
}
