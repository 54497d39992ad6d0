package network

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/pistis-run/pistis/internal/network/tap"
	"github.com/pistis-run/pistis/internal/network/tap/taptest"
)

// TestBridgeForVM connects what stands for a virtual machine to the bridge, beside an ordinary pod.
func TestBridgeForVM(t *testing.T) {
	b := newBridge(t, bridgeOptions(t))
	away := outside(t)
	serve(t, away, 80)
	pod, result := setup(t, b, "vm", Port{HostPort: 8089, ContainerPort: 80})
	other, _ := setup(t, b, "other")
	nics, err := tap.Attach(t.Context(), pod.NetNS)
	must(t, err)
	defer nics[0].Tap.Close()
	if len(nics) != 1 || nics[0].Name != "eth0" || nics[0].Sysctls["net.ipv6.conf.eth0.accept_ra"] != "0" {
		t.Fatalf("NICs are %+v", nics)
	}
	if want := b.prefixes(b.ledger.Pods["vm"].Index); !slices.Equal(nics[0].Addresses, want) {
		t.Errorf("addresses are %v, want %v", nics[0].Addresses, want)
	}
	guest := taptest.Guest(t, nics[0])
	serve(t, guest, 80)
	for _, c := range []struct{ name, from, to string }{
		{"host", "", netip.AddrPortFrom(result.IPs[0], 80).String()},
		{"host, IPv6", "", netip.AddrPortFrom(result.IPs[1], 80).String()},
		{"pod", other.NetNS, netip.AddrPortFrom(result.IPs[0], 80).String()},
		{"outside by host port", away, "192.0.2.1:8089"},
		{"host by host port", "", "127.0.0.1:8089"},
		{"itself by host port", guest, "192.0.2.1:8089"},
		{"guest to the outside", guest, "192.0.2.2:80"},
		{"guest to the outside, IPv6", guest, "[2001:db8::2]:80"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			if network == "udp" && c.to[len(c.to)-2:] == "89" {
				continue // the port is TCP's only
			}
			if _, err := ask(c.from, network, c.to); err != nil {
				t.Errorf("%s over %s: %v", c.name, network, err)
			}
		}
	}
	must(t, b.Check(t.Context(), pod)) // the addresses are on the interface still
	must(t, tap.Detach(t.Context(), pod.NetNS))
}
