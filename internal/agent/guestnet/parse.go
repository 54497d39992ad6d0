package guestnet

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// maxObjects bounds each list of a configuration.
const maxObjects = 4096

// plan is a configuration that was understood. Links are named; their indexes come when they are found.
type plan struct {
	links      []link
	routes     []route
	neighbours []neighbour
}

type link struct {
	name      string
	mac       net.HardwareAddr
	mtu       int
	addresses []netlink.Addr
}

type route struct {
	link string
	netlink.Route
}

type neighbour struct {
	link string
	netlink.Neigh
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("network: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

func parse(n *agentv1.Network) (*plan, error) {
	if len(n.GetInterfaces()) > maxObjects || len(n.GetRoutes()) > maxObjects || len(n.GetNeighbors()) > maxObjects {
		return nil, invalid("more than %d interfaces, routes or neighbours", maxObjects)
	}
	p := &plan{}
	names := map[string]bool{}
	for _, i := range n.GetInterfaces() {
		l, err := parseInterface(i)
		if err != nil {
			return nil, err
		}
		if names[l.name] {
			return nil, invalid("interface %s: named twice", l.name)
		}
		names[l.name] = true
		p.links = append(p.links, l)
	}
	for _, r := range n.GetRoutes() {
		parsed, err := parseRoute(r)
		if err != nil {
			return nil, err
		}
		if !names[parsed.link] {
			return nil, invalid("route to %q: there is no interface %q", r.Destination, r.Interface)
		}
		p.routes = append(p.routes, parsed)
	}
	for _, nb := range n.GetNeighbors() {
		parsed, err := parseNeighbour(nb)
		if err != nil {
			return nil, err
		}
		if !names[parsed.link] {
			return nil, invalid("neighbour %s: there is no interface %q", nb.Address, nb.Interface)
		}
		p.neighbours = append(p.neighbours, parsed)
	}
	return p, nil
}

func parseInterface(i *agentv1.Interface) (link, error) {
	if i.Name == "" || i.Name == "lo" || i.Name == "." || i.Name == ".." || len(i.Name) >= unix.IFNAMSIZ || strings.ContainsAny(i.Name, "/: \t\n\x00") {
		return link{}, invalid("interface name %q", i.Name)
	}
	if len(i.Mac) != 6 {
		return link{}, invalid("interface %s: a MAC address has 6 bytes, this one %d", i.Name, len(i.Mac))
	}
	if i.Mtu > 65535 {
		return link{}, invalid("interface %s: mtu %d", i.Name, i.Mtu)
	}
	l := link{name: i.Name, mac: net.HardwareAddr(i.Mac), mtu: int(i.Mtu)}
	for _, text := range i.Addresses {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return link{}, invalid("interface %s: address: %v", i.Name, err)
		}
		addr := netlink.Addr{IPNet: ipnet(prefix)}
		if prefix.Addr().Is6() {
			// The address was given out by the host: there is nobody to ask, and it must work at once.
			addr.Flags = unix.IFA_F_NODAD
		}
		l.addresses = append(l.addresses, addr)
	}
	return l, nil
}

func ipnet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func parseRoute(r *agentv1.Route) (route, error) {
	out := route{link: r.Interface, Route: netlink.Route{Priority: int(r.Metric), Scope: netlink.Scope(r.Scope)}}
	if r.Scope > 255 {
		return route{}, invalid("route to %q: scope %d", r.Destination, r.Scope)
	}
	var gateway, source netip.Addr
	var err error
	if r.Gateway != "" {
		if gateway, err = netip.ParseAddr(r.Gateway); err != nil {
			return route{}, invalid("route to %q: gateway: %v", r.Destination, err)
		}
		out.Gw = gateway.AsSlice()
	}
	if r.Source != "" {
		if source, err = netip.ParseAddr(r.Source); err != nil {
			return route{}, invalid("route to %q: source: %v", r.Destination, err)
		}
		out.Src = source.AsSlice()
	}
	destination, err := routeDestination(r.Destination, gateway)
	if err != nil {
		return route{}, err
	}
	for _, a := range []netip.Addr{gateway, source} {
		if a.IsValid() && a.Is4() != destination.Addr().Is4() {
			return route{}, invalid("route to %s: %s is of another address family", destination, a)
		}
	}
	out.Dst = ipnet(destination.Masked())
	out.Family = unix.AF_INET
	if destination.Addr().Is6() {
		out.Family = unix.AF_INET6
		out.Scope = netlink.SCOPE_UNIVERSE // IPv6 routes have none
	} else if !gateway.IsValid() && out.Scope == netlink.SCOPE_UNIVERSE {
		out.Scope = netlink.SCOPE_LINK
	}
	if r.Onlink {
		out.Flags = int(netlink.FLAG_ONLINK)
	}
	return out, nil
}

// routeDestination makes the default route of the gateway's family of an empty destination.
func routeDestination(text string, gateway netip.Addr) (netip.Prefix, error) {
	switch {
	case text != "":
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return p, invalid("route: destination: %v", err)
		}
		return p, nil
	case !gateway.IsValid():
		return netip.Prefix{}, invalid("route: neither destination nor gateway")
	case gateway.Is4():
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
	default:
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
	}
}

func parseNeighbour(n *agentv1.Neighbor) (neighbour, error) {
	addr, err := netip.ParseAddr(n.Address)
	if err != nil {
		return neighbour{}, invalid("neighbour: %v", err)
	}
	if len(n.Mac) != 6 {
		return neighbour{}, invalid("neighbour %s: a MAC address has 6 bytes, this one %d", n.Address, len(n.Mac))
	}
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	return neighbour{link: n.Interface, Neigh: netlink.Neigh{
		Family: family, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: net.HardwareAddr(n.Mac),
	}}, nil
}
