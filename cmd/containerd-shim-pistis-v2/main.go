// Command containerd-shim-pistis-v2 owns one microVM pod. pistisd and containerd start it; people need not.
package main

import (
	"os"

	"github.com/pistis-run/pistis/internal/hypervisor/drivers"
	"github.com/pistis-run/pistis/internal/network/tap"
	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/shim"
	"github.com/pistis-run/pistis/internal/shim/bootstrap"
)

func main() {
	os.Exit(bootstrap.Main(shim.Options{
		Drivers:        drivers.All(),
		AttachNetwork:  tap.Attach,
		InspectNetwork: tap.Inspect,
		GuestSpec:      oci.ForGuest,
		GuestResources: oci.GuestResources,
	}, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
