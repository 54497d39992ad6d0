package tap

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/rtnl"
)

// pod is what was found in a namespace.
type pod struct {
	// links are the interfaces that the guest gets, by index; nics has what it gets of each, by index.
	links []netlink.Link
	nics  map[int]*NIC
	// problems name what the guest could not be given.
	problems []string
}

func (p *pod) problem(format string, args ...any) {
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}

// refuse says all problems at once.
func (p *pod) refuse() error {
	if len(p.problems) == 0 {
		return nil
	}
	return fmt.Errorf("its network plugins made what a virtual machine would bypass: %s (leave that plugin out for such pods, or run the pod on the host's kernel): %w",
		strings.Join(p.problems, "; "), errdefs.ErrFailedPrecondition)
}

// survey looks at the namespace of the calling thread.
func survey(h *netlink.Handle) (*pod, error) {
	p := &pod{nics: map[int]*NIC{}}
	for _, step := range []func(*netlink.Handle) error{p.findLinks, p.findAddresses, p.findNeighbors, p.findQdiscs, p.findRules, p.findNetfilter, p.findTransforms} {
		if err := step(h); err != nil {
			return nil, err
		}
	}
	for _, link := range p.links {
		nic := p.nics[link.Attrs().Index]
		var err error
		if nic.Sysctls, err = interfaceSysctls(nic.Name); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// findLinks chooses the interfaces that the guest gets. Those that are down and bare are left out: the kernel puts some
// into every namespace.
func (p *pod) findLinks(h *netlink.Handle) error {
	links, err := rtnl.Dump(h.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return cmp.Compare(a.Attrs().Index, b.Attrs().Index) })
	for _, link := range links {
		attrs := link.Attrs()
		if attrs.Flags&net.FlagLoopback != 0 || isTap(link) {
			continue
		}
		if attrs.Flags&net.FlagUp == 0 {
			addrs, err := rtnl.Dump(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
			if err != nil {
				return fmt.Errorf("list the addresses of %s: %w", attrs.Name, err)
			}
			if len(addrs) > 0 {
				p.problem("interface %s has addresses and is down", attrs.Name)
			}
			continue
		}
		switch {
		case attrs.EncapType != "ether":
			p.problem("interface %s is of type %s (%s) and not Ethernet", attrs.Name, link.Type(), attrs.EncapType)
		case attrs.MasterIndex != 0 || link.Type() == "bridge" || link.Type() == "bond" || link.Type() == "team" || link.Type() == "vrf":
			p.problem("interface %s (%s) belongs to others in the pod or is made of them", attrs.Name, link.Type())
		case attrs.ParentIndex != 0 && attrs.NetNsID < 0 && link.Type() != "veth":
			p.problem("interface %s (%s) lies on another interface of the pod", attrs.Name, link.Type())
		default:
			p.links = append(p.links, link)
			p.nics[attrs.Index] = &NIC{Name: attrs.Name, MAC: slices.Clone(attrs.HardwareAddr), MTU: attrs.MTU}
		}
	}
	return nil
}

// findAddresses fills in addresses and routes, which belong together: adding an address makes a route for its prefix.
func (p *pod) findAddresses(h *netlink.Handle) error {
	var routes []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		of, err := rtnl.Dump(func() ([]netlink.Route, error) { return h.RouteList(nil, family) })
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		routes = append(routes, of...)
	}
	for _, link := range p.links {
		addrs, err := rtnl.Dump(func() ([]netlink.Addr, error) { return h.AddrList(link, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list the addresses of %s: %w", link.Attrs().Name, err)
		}
		nic := p.nics[link.Attrs().Index]
		for _, addr := range addrs {
			if prefix, ok := guestAddress(addr, routes); ok {
				nic.Addresses = append(nic.Addresses, prefix)
			}
		}
	}
	for _, route := range routes {
		p.addRoute(route)
	}
	for _, nic := range p.nics { // those without a gateway first: others may need them
		slices.SortStableFunc(nic.Routes, func(a, b Route) int {
			return cmp.Compare(min(a.Gateway.BitLen(), 1), min(b.Gateway.BitLen(), 1))
		})
	}
	return nil
}

// guestAddress returns the address as the guest has to have it, and false for one that it makes by itself. The whole
// prefix is kept only where its route is there.
func guestAddress(addr netlink.Addr, routes []netlink.Route) (netip.Prefix, bool) {
	ip := toAddr(addr.IP)
	bits, _ := addr.Mask.Size()
	if ip.Is6() && (addr.Flags&unix.IFA_F_PERMANENT == 0 || ip.IsLinkLocalUnicast()) {
		return netip.Prefix{}, false
	}
	prefix := netip.PrefixFrom(ip, bits)
	if addr.Peer != nil && !addr.Peer.IP.Equal(addr.IP) {
		return netip.PrefixFrom(ip, ip.BitLen()), true
	}
	connected := slices.ContainsFunc(routes, func(r netlink.Route) bool {
		return r.LinkIndex == addr.LinkIndex && implied(r, prefix)
	})
	if !connected {
		bits = ip.BitLen()
	}
	return netip.PrefixFrom(ip, bits), true
}

// implied says whether the kernel makes the route by itself when the address is added.
func implied(r netlink.Route, address netip.Prefix) bool {
	return r.Protocol == unix.RTPROT_KERNEL && r.Gw == nil && toPrefix(r.Dst) == address.Masked()
}

// addRoute gives the route to the NIC that it leads out of.
func (p *pod) addRoute(r netlink.Route) {
	if r.Protocol == unix.RTPROT_RA {
		return // the guest hears the router itself
	}
	nic := p.nics[r.LinkIndex]
	destination := toPrefix(r.Dst)
	if r.Protocol == unix.RTPROT_KERNEL {
		if nic == nil || destination.Addr().IsLinkLocalUnicast() && destination.Addr().Is6() || destination.Addr().IsMulticast() ||
			slices.ContainsFunc(nic.Addresses, func(a netip.Prefix) bool { return implied(r, a) }) {
			return
		}
	}
	if why := notPortable(r); why != "" {
		p.problem("route %s %s", r, why)
		return
	}
	if nic == nil {
		p.problem("route %s leads out of an interface that the guest does not get", r)
		return
	}
	if r.MTU >= 1280 && r.MTU < nic.MTU {
		nic.MTU = r.MTU
	}
	route := Route{
		Destination: destination, Gateway: toAddr(r.Gw), Source: toAddr(r.Src),
		Scope: uint8(r.Scope), OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0, Metric: r.Priority,
	}
	if destination.Bits() == 0 && route.Gateway.IsValid() {
		route.Destination = netip.Prefix{}
	}
	nic.Routes = append(nic.Routes, route)
}

// notPortable says what of a route has no place in Route.
func notPortable(r netlink.Route) string {
	switch {
	case r.Type != unix.RTN_UNICAST:
		return fmt.Sprintf("is not an ordinary route (type %d)", r.Type)
	case len(r.MultiPath) > 0:
		return "has several next hops"
	case r.Encap != nil || r.Via != nil || r.MPLSDst != nil || r.NewDst != nil:
		return "encapsulates packets"
	case r.Tos != 0 || r.Realm != 0:
		return "is for some types of service or realms only"
	case r.MTU != 0 && r.MTU < 1280:
		return fmt.Sprintf("has an MTU of %d, less than 1280", r.MTU)
	case r.Window|r.Rtt|r.RttVar|r.Ssthresh|r.Cwnd|r.AdvMSS|r.Reordering|r.Hoplimit|r.InitCwnd|r.InitRwnd|r.RtoMin|r.QuickACK != 0 || r.Congctl != "":
		return "has TCP settings"
	}
	return ""
}

// findNeighbors fills in the permanent entries.
func (p *pod) findNeighbors(h *netlink.Handle) error {
	for _, link := range p.links {
		nic := p.nics[link.Attrs().Index]
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			neighbors, err := rtnl.Dump(func() ([]netlink.Neigh, error) { return h.NeighList(link.Attrs().Index, family) })
			if err != nil {
				return fmt.Errorf("list the neighbours of %s: %w", nic.Name, err)
			}
			for _, n := range neighbors {
				if n.State&unix.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 {
					nic.Neighbors = append(nic.Neighbors, Neighbor{toAddr(n.IP), slices.Clone(n.HardwareAddr)})
				}
			}
		}
	}
	return nil
}

// plainQdiscs only queue; they drop or delay nothing that a limit asks for.
var plainQdiscs = map[string]bool{"noqueue": true, "pfifo_fast": true, "pfifo": true, "fq": true, "fq_codel": true, "fq_pie": true, "mq": true}

func (p *pod) findQdiscs(h *netlink.Handle) error {
	for _, link := range p.links {
		qdiscs, err := rtnl.Dump(func() ([]netlink.Qdisc, error) { return h.QdiscList(link) })
		if err != nil {
			return fmt.Errorf("list the queueing disciplines of %s: %w", link.Attrs().Name, err)
		}
		for _, q := range qdiscs {
			if plainQdiscs[q.Type()] {
				continue
			}
			ours, err := ownIngress(h, link)
			if err != nil {
				return err
			}
			if ours == nil || q.Type() != "ingress" {
				p.problem("queueing discipline %s on interface %s", q.Type(), link.Attrs().Name)
			}
		}
	}
	return nil
}

// defaultRules are the policy rules of every namespace: table by priority.
var defaultRules = map[int]int{0: unix.RT_TABLE_LOCAL, 32766: unix.RT_TABLE_MAIN, 32767: unix.RT_TABLE_DEFAULT}

func (p *pod) findRules(h *netlink.Handle) error {
	for family, name := range map[int]string{netlink.FAMILY_V4: "IPv4", netlink.FAMILY_V6: "IPv6"} {
		rules, err := h.RuleList(family)
		if err != nil {
			return fmt.Errorf("list %s policy rules: %w", name, err)
		}
		for _, rule := range rules {
			table, standard := defaultRules[rule.Priority]
			plain := rule.Src == nil && rule.Dst == nil && rule.Mark == 0 && rule.IifName == "" && rule.OifName == "" && !rule.Invert &&
				rule.IPProto == 0 && rule.Sport == nil && rule.Dport == nil && rule.UIDRange == nil && rule.Tos == 0
			if !standard || table != rule.Table || !plain {
				p.problem("%s policy rule %q", name, rule)
			}
		}
	}
	return nil
}

// toAddr is the zero Addr for none.
func toAddr(ip net.IP) netip.Addr {
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}

func toPrefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, size := n.Mask.Size()
	ip := n.IP
	if size == 32 && len(bytes.TrimLeft(ip, "\x00")) == 0 {
		ip = ip[:min(len(ip), 4)] // 0.0.0.0/0 comes in either length
	}
	return netip.PrefixFrom(toAddr(ip), bits)
}
