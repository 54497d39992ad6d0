// Package drivers names the drivers that there are. It has no state.
package drivers

import (
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/cloudhypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/firecracker"
	"github.com/pistis-run/pistis/internal/hypervisor/qemu"
)

// All drivers, by the names that they have in the configuration.
func All() map[string]hypervisor.Driver {
	all := map[string]hypervisor.Driver{}
	for _, d := range []hypervisor.Driver{qemu.Driver{}, firecracker.Driver{}, cloudhypervisor.Driver{}} {
		all[d.Name()] = d
	}
	return all
}
