package vm

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/network/tap"
)

const (
	defaultBootTimeout = time.Minute
	// scratchID names the pod's writable disk in the VMM.
	scratchID = "scratch"
	// modulesID names the disk with kernel modules.
	modulesID = "modules"
)

// Request describes a VM to boot.
type Request struct {
	// ID of the sandbox.
	ID      string
	Options *shimv1.SandboxOptions
	// NetNS is the path of the pod's network namespace; empty gives the guest no network.
	NetNS string
	// RunDir is for the driver's sockets; it is made here and removed at the end. ConsoleLog receives the console.
	RunDir, ConsoleLog string
	Driver             hypervisor.Driver
	// AttachNetwork connects the namespace's interfaces to taps. InspectNetwork, where set, tells of the namespace's
	// other settings; only its sysctls are used.
	AttachNetwork  func(ctx context.Context, netns string) ([]tap.NIC, error)
	InspectNetwork func(ctx context.Context, netns string) (tap.Report, error)
	// Prepare, where set, runs beside AttachNetwork and is done before the VMM starts.
	Prepare func() error
	// ShareServer is the command that serves directories and files of the host, as share.Start takes it.
	ShareServer []string
	// Started is called with the VMM's pid before the guest runs.
	Started func(pid int) error
}

// Config is the VM that the options describe. It is pure: files, the console and callbacks are what Boot adds.
func Config(id string, o *shimv1.VMOptions, nics []tap.NIC) hypervisor.Config {
	c := hypervisor.Config{
		ID:      id,
		Binary:  o.GetBinary(),
		Machine: o.GetMachine(),
		Accel:   hypervisor.Acceleration(o.GetAcceleration()),
		Kernel:  o.GetKernel(),
		Initrd:  o.GetInitrd(),
		Params:  slices.Clone(o.GetKernelParams()),
		Size: hypervisor.Size{
			VCPUs: int(o.GetVcpus()), Memory: o.GetMemoryBytes(),
			// A VM that is larger than what it may grow to does not grow.
			MaxVCPUs: int(max(o.GetMaxVcpus(), o.GetVcpus())), MaxMemory: max(o.GetMaxMemoryBytes(), o.GetMemoryBytes()),
		},
	}
	if t := o.GetTuning(); t != nil {
		c.Tuning = hypervisor.Tuning{
			DiskRate: hypervisor.Rate{Bytes: t.DiskBytes, Ops: t.DiskOps}, NetRate: hypervisor.Rate{Bytes: t.NetBytes, Ops: t.NetOps},
			CPUTemplate: t.CpuTemplate, Reclaim: t.Reclaim,
		}
	}
	for i, nic := range nics {
		c.NICs = append(c.NICs, hypervisor.NIC{ID: fmt.Sprintf("nic%d", i), Tap: nic.Tap, MAC: nic.MAC, MTU: nic.MTU})
	}
	if o.GetUid() != 0 {
		c.User = &hypervisor.User{UID: o.GetUid(), GID: o.GetGid()}
	}
	return c
}

// Validate reports what is wrong with a request, before anything is touched.
func (r Request) Validate() error {
	o := r.Options.GetVm()
	switch {
	case o == nil:
		return fmt.Errorf("sandbox %s: no VM options in the request: %w", r.ID, errdefs.ErrInvalidArgument)
	case r.Driver == nil:
		return fmt.Errorf("sandbox %s: no such hypervisor %q: %w", r.ID, o.Hypervisor, errdefs.ErrInvalidArgument)
	case r.NetNS != "" && r.AttachNetwork == nil:
		return fmt.Errorf("sandbox %s: a network namespace and nothing to attach it: %w", r.ID, errdefs.ErrInvalidArgument)
	}
	config := Config(r.ID, o, nil)
	config.Limit(r.Driver.Capabilities())
	if err := config.Validate(r.Driver.Capabilities()); err != nil {
		return fmt.Errorf("sandbox %s: %w", r.ID, err)
	}
	for what, path := range map[string]string{"kernel": o.Kernel, "initrd": o.Initrd, "scratch disk": r.Options.Scratch, "modules disk": r.Options.Modules} {
		if path == "" {
			continue
		}
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("sandbox %s: the guest's %s cannot be used: %w: %w", r.ID, what, err, errdefs.ErrFailedPrecondition)
		}
	}
	if r.Options.Scratch+r.Options.Modules != "" && !r.Driver.Capabilities().HotplugDisk {
		return fmt.Errorf("sandbox %s: hypervisor %s cannot attach disks: %w", r.ID, r.Driver.Name(), errdefs.ErrNotImplemented)
	}
	return nil
}

func bootTimeout(o *shimv1.VMOptions) time.Duration {
	if d := o.GetBootTimeout().AsDuration(); d > 0 {
		return d
	}
	return defaultBootTimeout
}
