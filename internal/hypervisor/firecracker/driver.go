package firecracker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

const (
	// maxVCPUs is Firecracker's own limit.
	maxVCPUs = 32
	// ownSlots: the bridge, the stream, the entropy, the memory device and memory in common with the host have one each.
	ownSlots = 5
	// minMemory is what a distribution's kernel with our initrd boots in.
	minMemory = 128 << 20
)

// filterFile is where a filter of system calls lies relative to the program's directory, for a Firecracker that was
// built without one.
const filterFile = "../share/firecracker/seccomp-filter.bpf"

// program is Firecracker. Before 1.8 it does not tell the guest of its devices by ACPI, which distributions' kernels need.
var program = vmm.Program{
	Driver: "firecracker", Name: "firecracker",
	Install: "a release of the Firecracker project has it", Major: 1, Minor: 8,
}

const (
	// mmioDevices are what a VM without PCI has interrupts for, beside its clock and its generation number.
	mmioDevices = 17
	// writablePlaceholders are as many of its drives: the pod's disk and volumes. All others are for layers.
	writablePlaceholders = 4
)

// abilities are what versions differ in.
type abilities struct {
	version string
	// plug: disks can be plugged while the VM runs, as PCI devices. Without it the VM has placeholders from its start on.
	plug bool
	// memory can be added, given back, and in common with the host.
	memory bool
	// early: a disk may come while the guest boots. Before, its interrupt kills a guest whose driver does not expect it yet.
	early bool
}

func abilitiesOf(version string) abilities {
	return abilities{version: version, plug: vmm.AtLeast(version, 1, 16), memory: vmm.AtLeast(version, 1, 14), early: vmm.AtLeast(version, 1, 13)}
}

// placeholders are how many drives a VM gets that cannot be plugged any.
func (a abilities) placeholders(cfg hypervisor.Config) int {
	if a.plug {
		return 0
	}
	return maxDisks(len(cfg.NICs), cfg.Reclaim) - (vmm.PCISlots - mmioDevices) + 1 // there is no PCI bridge
}

// Driver starts VMs with Firecracker.
type Driver struct {
	// mmio is for tests: VMs are as those of versions that cannot plug.
	mmio bool
}

// Name is firecracker.
func (Driver) Name() string { return "firecracker" }

// Capabilities of VMs that Firecracker runs. The number of disks is that of a VM with one network card that keeps its
// memory.
func (Driver) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{HotplugDisk: true, Reclaims: true, ResizeMemory: true, Tunable: true, MaxDisks: maxDisks(1, false), MinMemory: minMemory, ELFKernel: true, NeedsKVM: true}
}

// maxDisks is what a VM can have.
func maxDisks(nics int, reclaim bool) int { return vmm.MaxDisks(ownSlots, nics, reclaim) }

// Version is Firecracker's, as 1.16.1. An empty binary looks on PATH.
func (Driver) Version(ctx context.Context, binary string) (string, error) {
	return program.Version(ctx, binary)
}

// filter returns the path of a filter of system calls beside the program, or nothing.
func filter(path string) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	file := filepath.Join(filepath.Dir(resolved), filterFile)
	switch _, err := os.Stat(file); {
	case err == nil:
		return file, nil
	case os.IsNotExist(err):
		return "", nil
	default:
		return "", err
	}
}

func check(cfg hypervisor.Config) error {
	if err := cfg.Validate(Driver{}.Capabilities()); err != nil {
		return err
	}
	switch {
	case cfg.VCPUs > maxVCPUs:
		return fmt.Errorf("vm config: %d vcpus, Firecracker has at most %d: %w", cfg.VCPUs, maxVCPUs, errdefs.ErrInvalidArgument)
	case cfg.RunDir == "":
		return fmt.Errorf("vm config: no run directory: %w", errdefs.ErrInvalidArgument)
	case cfg.Machine != "":
		return fmt.Errorf("vm config: Firecracker has no machine types, and %q is asked for: %w", cfg.Machine, errdefs.ErrInvalidArgument)
	case len(cfg.Disks) > maxDisks(len(cfg.NICs), cfg.Reclaim):
		return fmt.Errorf("vm config: %d disks, at most %d can be attached: %w", len(cfg.Disks), maxDisks(len(cfg.NICs), cfg.Reclaim), errdefs.ErrInvalidArgument)
	}
	if err := vmm.CheckDisks(cfg.Disks); err != nil {
		return err
	}
	return vmm.CheckNICs(cfg.NICs)
}
