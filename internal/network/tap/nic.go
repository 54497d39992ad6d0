package tap

import (
	"net"
	"net/netip"
	"os"
)

// NIC is one interface of the pod, as the guest has to have it.
type NIC struct {
	// Name is what the interface is called in the pod, as eth0.
	Name string
	// Tap is an open tap device with virtio-net headers (IFF_VNET_HDR), not blocking. The caller owns it; the device
	// is gone when the last descriptor of it is closed.
	Tap *os.File
	MAC net.HardwareAddr
	// MTU in bytes. It is the interface's, or less where a route of the interface has a smaller one.
	MTU int
	// Addresses do not include those that the guest makes itself (link-local, router advertisements). A prefix is
	// shortened to the one address where the pod has no route for the whole of it.
	Addresses []netip.Prefix
	// Routes in an order in which they can be added. Connected routes, which come with the addresses, are left out.
	Routes    []Route
	Neighbors []Neighbor
	// Sysctls of the interface that differ from the default of its namespace, as "net.ipv4.conf.eth0.rp_filter".
	Sysctls map[string]string
}

// Route leads out of a NIC.
type Route struct {
	// Destination is the zero Prefix for the default route of the gateway's family.
	Destination netip.Prefix
	// Gateway and Source may be the zero Addr.
	Gateway, Source netip.Addr
	// Scope is the kernel's: 0 universe, 253 link.
	Scope  uint8
	OnLink bool
	Metric int
}

// Neighbor is a permanent entry of the neighbour table.
type Neighbor struct {
	Address netip.Addr
	MAC     net.HardwareAddr
}
