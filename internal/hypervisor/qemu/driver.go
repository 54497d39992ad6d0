package qemu

import (
	"context"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

const (
	// maxLUNs is what one target is addressed with in SCSI's simple form.
	maxLUNs = 256
	// minMemory is what a distribution's kernel with our initrd boots in.
	minMemory = 128 << 20
)

var program = vmm.Program{
	Driver: "qemu", Name: "qemu-system-x86_64", Install: "Debian: apt-get install qemu-system-x86", Major: 7, Minor: 2,
}

// Driver starts VMs with QEMU.
type Driver struct{}

// Name is qemu.
func (Driver) Name() string { return "qemu" }

// Capabilities of VMs that QEMU runs.
func (Driver) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{HotplugDisk: true, ResizeMemory: true, ResizeVCPUs: true, Reclaims: true, MaxDisks: maxLUNs, MinMemory: minMemory}
}

// Version is QEMU's, as 7.2.22. An empty binary looks on PATH.
func (Driver) Version(ctx context.Context, binary string) (string, error) {
	return program.Version(ctx, binary)
}
