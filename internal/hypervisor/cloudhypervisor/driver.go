package cloudhypervisor

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

const (
	// ownSlots: the bridge, the stream, the entropy, the memory device and memory in common with the host have one each, on the first bus.
	ownSlots = 5
	// minMemory is what a distribution's kernel with our initrd boots in.
	minMemory = 128 << 20
	// maxVCPUs is what one may ask for.
	maxVCPUs = 254
)

// program is Cloud Hypervisor. Before 40 it does not take what the driver says.
var program = vmm.Program{
	Driver: "cloud-hypervisor", Name: "cloud-hypervisor",
	Install: "a release of the Cloud Hypervisor project has it", Major: 40,
}

// Driver starts VMs with Cloud Hypervisor.
type Driver struct{}

// Name is cloud-hypervisor.
func (Driver) Name() string { return "cloud-hypervisor" }

// Capabilities of VMs that Cloud Hypervisor runs. The number of disks is that of a VM with one network card that keeps its
// memory.
func (Driver) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{HotplugDisk: true, Reclaims: true, ResizeMemory: true, ResizeVCPUs: true, MaxDisks: maxDisks(1, false), MinMemory: minMemory, NeedsKVM: true}
}

// maxDisks is what a VM can have.
func maxDisks(nics int, reclaim bool) int { return vmm.MaxDisks(ownSlots, nics, reclaim) }

// Version is Cloud Hypervisor's, as 53.0. An empty binary looks on PATH.
func (Driver) Version(ctx context.Context, binary string) (string, error) {
	return program.Version(ctx, binary)
}

func check(cfg hypervisor.Config) error {
	if err := cfg.Validate(Driver{}.Capabilities()); err != nil {
		return err
	}
	switch {
	case max(cfg.VCPUs, cfg.MaxVCPUs) > maxVCPUs:
		return fmt.Errorf("vm config: %d vcpus, at most %d are possible: %w", max(cfg.VCPUs, cfg.MaxVCPUs), maxVCPUs, errdefs.ErrInvalidArgument)
	case cfg.RunDir == "":
		return fmt.Errorf("vm config: no run directory: %w", errdefs.ErrInvalidArgument)
	case cfg.Machine != "":
		return fmt.Errorf("vm config: Cloud Hypervisor has no machine types, and %q is asked for: %w", cfg.Machine, errdefs.ErrInvalidArgument)
	case len(cfg.Disks) > maxDisks(len(cfg.NICs), cfg.Reclaim):
		return fmt.Errorf("vm config: %d disks, at most %d can be attached: %w", len(cfg.Disks), maxDisks(len(cfg.NICs), cfg.Reclaim), errdefs.ErrInvalidArgument)
	}
	if err := vmm.CheckDisks(cfg.Disks); err != nil {
		return err
	}
	return vmm.CheckNICs(cfg.NICs)
}
