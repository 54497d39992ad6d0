package vm

import (
	"maps"
	"net/netip"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/network/tap"
)

// guestNetwork is what the agent has to set up for the NICs.
func guestNetwork(nics []tap.NIC) *agentv1.Network {
	n := &agentv1.Network{}
	for _, nic := range nics {
		i := &agentv1.Interface{Name: nic.Name, Mac: nic.MAC, Mtu: uint32(nic.MTU)}
		for _, a := range nic.Addresses {
			i.Addresses = append(i.Addresses, a.String())
		}
		n.Interfaces = append(n.Interfaces, i)
		for _, r := range nic.Routes {
			n.Routes = append(n.Routes, &agentv1.Route{
				Interface: nic.Name, Destination: prefixText(r.Destination), Gateway: addrText(r.Gateway), Source: addrText(r.Source),
				Scope: uint32(r.Scope), Onlink: r.OnLink, Metric: uint32(max(r.Metric, 0)),
			})
		}
		for _, v := range nic.Neighbors {
			n.Neighbors = append(n.Neighbors, &agentv1.Neighbor{Interface: nic.Name, Address: v.Address.String(), Mac: v.MAC})
		}
	}
	return n
}

// guestSysctls adds what the network's plugins set, in the namespace and on its interfaces, to what the pod asked for;
// the pod wins.
func guestSysctls(nics []tap.NIC, namespace, pod map[string]string) map[string]string {
	all := maps.Clone(namespace)
	if all == nil {
		all = map[string]string{}
	}
	for _, nic := range nics {
		maps.Copy(all, nic.Sysctls)
	}
	maps.Copy(all, pod)
	return all
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
