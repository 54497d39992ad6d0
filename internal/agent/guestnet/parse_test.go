package guestnet

import (
	"testing"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

var mac = []byte{2, 0, 0, 0, 0, 1}

func eth0(addresses ...string) *agentv1.Interface {
	return &agentv1.Interface{Name: "eth0", Mac: mac, Mtu: 1400, Addresses: addresses}
}

func TestParse(t *testing.T) {
	p, err := parse(&agentv1.Network{
		Interfaces: []*agentv1.Interface{eth0("10.0.0.2/24", "fd00::2/64")},
		Routes: []*agentv1.Route{
			{Interface: "eth0", Gateway: "10.0.0.1"},
			{Interface: "eth0", Gateway: "fe80::1", Onlink: true, Metric: 7},
			{Interface: "eth0", Destination: "10.9.1.7/16", Source: "10.0.0.2"},
		},
		Neighbors: []*agentv1.Neighbor{{Interface: "eth0", Address: "10.0.0.1", Mac: mac}},
	})
	if err != nil {
		t.Fatal(err)
	}
	l := p.links[0]
	if l.name != "eth0" || l.mtu != 1400 || len(l.addresses) != 2 || l.addresses[0].Flags != 0 || l.addresses[1].Flags != unix.IFA_F_NODAD {
		t.Errorf("link: %+v", l)
	}
	for i, want := range []struct {
		dst    string
		family int
		scope  netlink.Scope
		flags  int
	}{
		{"0.0.0.0/0", unix.AF_INET, netlink.SCOPE_UNIVERSE, 0},
		{"::/0", unix.AF_INET6, netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)},
		{"10.9.0.0/16", unix.AF_INET, netlink.SCOPE_LINK, 0},
	} {
		if r := p.routes[i]; r.Dst.String() != want.dst || r.Family != want.family || r.Scope != want.scope || r.Flags != want.flags {
			t.Errorf("route %d: %+v", i, r)
		}
	}
	if n := p.neighbours[0]; n.IP.String() != "10.0.0.1" || n.State != netlink.NUD_PERMANENT {
		t.Errorf("neighbour: %+v", n)
	}
}

func TestParseRefuses(t *testing.T) {
	with := func(r *agentv1.Route) *agentv1.Network {
		return &agentv1.Network{Interfaces: []*agentv1.Interface{eth0()}, Routes: []*agentv1.Route{r}}
	}
	for name, n := range map[string]*agentv1.Network{
		"no name":            {Interfaces: []*agentv1.Interface{{Mac: mac}}},
		"loopback":           {Interfaces: []*agentv1.Interface{{Name: "lo", Mac: mac}}},
		"a path":             {Interfaces: []*agentv1.Interface{{Name: "../x", Mac: mac}}},
		"no mac":             {Interfaces: []*agentv1.Interface{{Name: "eth0"}}},
		"twice":              {Interfaces: []*agentv1.Interface{eth0(), eth0()}},
		"bad address":        {Interfaces: []*agentv1.Interface{eth0("10.0.0.2")}},
		"mtu":                {Interfaces: []*agentv1.Interface{{Name: "eth0", Mac: mac, Mtu: 1 << 20}}},
		"nowhere":            with(&agentv1.Route{Interface: "eth0"}),
		"unknown interface":  with(&agentv1.Route{Interface: "eth1", Gateway: "10.0.0.1"}),
		"families":           with(&agentv1.Route{Interface: "eth0", Destination: "10.0.0.0/8", Gateway: "fd00::1"}),
		"bad gateway":        with(&agentv1.Route{Interface: "eth0", Gateway: "x"}),
		"bad source":         with(&agentv1.Route{Interface: "eth0", Gateway: "10.0.0.1", Source: "x"}),
		"bad destination":    with(&agentv1.Route{Interface: "eth0", Destination: "10.0.0.0/33"}),
		"neighbour address":  {Interfaces: []*agentv1.Interface{eth0()}, Neighbors: []*agentv1.Neighbor{{Interface: "eth0", Address: "x", Mac: mac}}},
		"neighbour mac":      {Interfaces: []*agentv1.Interface{eth0()}, Neighbors: []*agentv1.Neighbor{{Interface: "eth0", Address: "10.0.0.1"}}},
		"neighbour of whom?": {Neighbors: []*agentv1.Neighbor{{Interface: "eth0", Address: "10.0.0.1", Mac: mac}}},
	} {
		if _, err := parse(n); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, n := range []*agentv1.Network{
		{}, {Interfaces: []*agentv1.Interface{eth0("10.0.0.2/24")}, Routes: []*agentv1.Route{{Interface: "eth0", Gateway: "10.0.0.1"}}},
	} {
		wire, err := proto.Marshal(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(wire)
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		var n agentv1.Network
		if proto.Unmarshal(wire, &n) != nil {
			return
		}
		p, err := parse(&n)
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("an error without a class: %v", err)
		}
		if err == nil && len(p.routes) != len(n.Routes) {
			t.Errorf("%d routes became %d", len(n.Routes), len(p.routes))
		}
	})
}
