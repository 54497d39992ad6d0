package guestnet

import (
	"os"
	"runtime"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// TestApply configures a network namespace of its own twice: the second configuration replaces the first.
func TestApply(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, not tested: network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	if _, err := netns.New(); err != nil {
		t.Skipf("SKIPPED, not tested: no network namespace: %v", err)
	}
	a := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "x0", HardwareAddr: mac}, PeerName: "x1", PeerHardwareAddr: []byte{2, 0, 0, 0, 0, 2}}
	if err := netlink.LinkAdd(a); err != nil {
		t.Skipf("SKIPPED, not tested: no veth: %v", err)
	}
	if err := Loopback(); err != nil {
		t.Fatal(err)
	}
	other := &agentv1.Interface{Name: "x0", Mac: []byte{2, 0, 0, 0, 0, 2}} // each takes the other's name
	first := &agentv1.Network{
		Interfaces: []*agentv1.Interface{{Name: "x1", Mac: mac, Mtu: 1400, Addresses: []string{"10.7.0.2/24", "fd07::2/64"}}, other},
		Routes: []*agentv1.Route{
			{Interface: "x1", Gateway: "10.7.0.1"},
			{Interface: "x1", Gateway: "fd07::1"},
			{Interface: "x1", Destination: "10.7.0.0/24", Source: "10.7.0.2"}, // the kernel's own
			{Interface: "x1", Destination: "169.254.1.1/32"},
			{Interface: "x1", Destination: "10.8.0.0/16", Gateway: "169.254.9.9", Onlink: true},
		},
		Neighbors: []*agentv1.Neighbor{{Interface: "x1", Address: "10.7.0.1", Mac: mac}},
	}
	if err := Apply(first); err != nil {
		t.Fatal(err)
	}
	expect(t, "x1", 1400, 4, "10.7.0.2/24")
	second := &agentv1.Network{
		Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: mac, Mtu: 1300, Addresses: []string{"10.9.0.2/24"}}},
		Routes:     []*agentv1.Route{{Interface: "eth0", Gateway: "10.9.0.1"}},
	}
	for range 2 {
		if err := Apply(second); err != nil {
			t.Fatal(err)
		}
		// Its peer is down now, and routes of a link without a carrier stay in the table.
		expect(t, "eth0", 1300, 2, "10.9.0.2/24")
	}
	second.Interfaces[0].Mac = []byte{2, 0, 0, 0, 0, 9}
	if err := Apply(second); !errdefs.IsNotFound(err) {
		t.Errorf("a card that is not there: %v", err)
	}
	stats, err := Stats()
	if err != nil || len(stats) != 2 {
		t.Errorf("stats: %v, %v", stats, err)
	}
}

func expect(t *testing.T, name string, mtu, routes int, address string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if l.Attrs().MTU != mtu {
		t.Errorf("%s: mtu %d, want %d", name, l.Attrs().MTU, mtu)
	}
	addrs, err := rtnl.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, unix.AF_INET) })
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != address {
		t.Errorf("%s: addresses %v, %v", name, addrs, err)
	}
	have, err := rtnl.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(l, unix.AF_INET) })
	if err != nil || len(have) != routes {
		t.Errorf("%s: routes %v, %v; want %d", name, have, err, routes)
	}
}
