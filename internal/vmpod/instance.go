package vmpod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/bundle"
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
	ResizeVM(ctx context.Context, vcpus uint32, memoryBytes uint64) error
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
	phases []phase // of its start
	// size is what a pod's VM would get now.
	size func(sandbox.Config) (vcpus uint32, memoryBytes uint64)
	// bundle has the guest's console while it runs. whole tells where all of it is going to be when the VM has not ended as it
	// should.
	bundle bundle.Dir
	whole  func() string

	mu   sync.Mutex
	told *shimv1.InfoResponse // last
}

func (i *instance) learn(info *shimv1.InfoResponse) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.told = info
}

// has tells whether the shim has a feature, which one that an older daemon started may lack.
func (i *instance) has(feature string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Contains(i.told.GetFeatures(), feature)
}

// Refresh asks the shim what it runs.
func (i *instance) Refresh(ctx context.Context) error {
	info, err := i.client.Info(ctx)
	if err != nil {
		return fmt.Errorf("shim: %w", err)
	}
	i.learn(info)
	return nil
}

// Resize gives the VM what the pod's resources come to. One of an older shim keeps what it has.
func (i *instance) Resize(ctx context.Context, cfg sandbox.Config) error {
	vcpus, memory := i.size(cfg)
	if i.has(shimv1.FeatureResize) {
		return i.client.ResizeVM(ctx, vcpus, memory)
	}
	i.mu.Lock()
	vm := i.told.GetVm()
	i.mu.Unlock()
	if vcpus <= vm.GetVcpus() && memory <= vm.GetMemoryBytes() {
		return nil
	}
	return fmt.Errorf("the pod's microVM has %d processors and %d MiB of memory, and would need %d and %d MiB; it was made by an older version, and cannot grow: make the pod anew with these resources: %w",
		vm.GetVcpus(), vm.GetMemoryBytes()>>20, vcpus, memory>>20, errdefs.ErrFailedPrecondition)
}

func (i *instance) Tasks() task.Service { return i.client }

func (i *instance) Wait(ctx context.Context) (string, error) {
	exit, err := i.client.WaitSandbox(ctx)
	if err != nil {
		return "", err
	}
	if !i.has(shimv1.FeatureConsole) {
		return exit.Reason, nil
	}
	return exit.Reason + i.whole(), nil
}

// Stop powers the guest off, and kills the VM when that takes too long. The console of an older shim's goes, which does not tell a
// VM that ended as it should from another.
func (i *instance) Stop(ctx context.Context) error {
	if err := i.client.Stop(ctx, stopTimeout); err != nil {
		return errors.Join(err, i.client.Kill(ctx))
	}
	if i.has(shimv1.FeatureConsole) {
		return nil
	}
	var errs []error
	for _, path := range consoles(i.bundle) {
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}

func (i *instance) Info() map[string]string {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := describe(i.told)
	out["console"] = i.bundle.Console()
	return out
}

func (i *instance) Close() error { return i.client.Close() }

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
