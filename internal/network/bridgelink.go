package network

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// defaultMTU is used where the host has no default route to take it from.
const defaultMTU = 1500

// vethName is the host's end of the link of the pod that has the index-th address of the bridge.
func vethName(bridge string, index uint32) string {
	return vethPrefix(bridge) + fmt.Sprintf("%05x", index)
}

// vethPrefix is common to the links of a bridge. The kernel allows names of 15 bytes.
func vethPrefix(bridge string) string {
	sum := sha256.Sum256([]byte(bridge))
	return "pv" + hex.EncodeToString(sum[:4])
}

// ensureBridge makes the bridge device as it should be and returns it.
func ensureBridge(name string, mtu int, gateways []netip.Prefix, mark bridgeMark) (netlink.Link, error) {
	link, err := findLink(name)
	if err != nil {
		return nil, err
	}
	if link == nil {
		if err := checkFree(gateways); err != nil {
			return nil, err
		}
		if link, err = addBridge(name, mtu); err != nil {
			return nil, err
		}
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("interface %s is a %s and not a bridge (configure another bridge name): %w", name, link.Type(), errdefs.ErrFailedPrecondition)
	}
	if err := mark.take(link); err != nil {
		return nil, err
	}
	settings := map[string]string{}
	for _, g := range gateways {
		if g.Addr().Is4() {
			settings["ipv4/route_localnet"] = "1" // host ports on localhost; the ruleset guards the loopback
		} else {
			settings["ipv6/disable_ipv6"] = "0"
			settings["ipv6/accept_ra"] = "0"
		}
	}
	if err := setInterfaceSysctls(name, settings); err != nil {
		return nil, err
	}
	if err := ensureAddresses(link, gateways); err != nil {
		return nil, err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("set bridge %s up: %w", name, err)
		}
	}
	return link, nil
}

// checkFree refuses networks of which the host already reaches a part over another interface: one of the two would
// be unreachable. Wider routes, as those of a company's network, are no conflict: the bridge's is more specific.
func checkFree(networks []netip.Prefix) error {
	routes, err := rtnl.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("routes of the host: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		used := prefixOf(r.Dst)
		for _, n := range networks {
			if used.Bits() < n.Bits() || !n.Contains(used.Addr()) {
				continue
			}
			name := fmt.Sprint("interface ", r.LinkIndex)
			if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
				name = link.Attrs().Name
			}
			return fmt.Errorf("network %s is in use: the host reaches %s over %s (configure another network for the bridge): %w", n.Masked(), used, name, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

func addBridge(name string, mtu int) (netlink.Link, error) {
	if mtu == 0 {
		var err error
		if mtu, err = hostMTU(); err != nil {
			return nil, err
		}
	}
	// With an address of its own the bridge does not change it as ports come and go.
	mac := net.HardwareAddr{0x02, 0, 0, 0, 0, 0}
	_, _ = rand.Read(mac[1:]) // never fails
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: mac, TxQLen: -1}}
	if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add bridge %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", name, err)
	}
	return link, nil
}

// hostMTU is the smallest of the interfaces that have a default route: no packet needs to be fragmented then.
func hostMTU() (int, error) {
	routes, err := rtnl.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return 0, fmt.Errorf("list the host's routes: %w", err)
	}
	mtu := 0
	for _, route := range routes {
		if route.Dst != nil && !route.Dst.IP.IsUnspecified() {
			continue
		}
		link, err := netlink.LinkByIndex(route.LinkIndex)
		if err != nil {
			continue // a multipath route, or an interface that went
		}
		if m := link.Attrs().MTU; mtu == 0 || m < mtu {
			mtu = m
		}
	}
	if mtu < 1280 { // what IPv6 needs at least
		return defaultMTU, nil
	}
	return mtu, nil
}

// ensureAddresses gives the link the addresses and takes others of global scope from it.
func ensureAddresses(link netlink.Link, want []netip.Prefix) error {
	have, err := rtnl.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", link.Attrs().Name, err)
	}
	missing := map[netip.Prefix]bool{}
	for _, p := range want {
		missing[p] = true
	}
	for _, addr := range have {
		p := prefixOf(addr.IPNet)
		if missing[p] {
			delete(missing, p)
		} else if !p.Addr().IsLinkLocalUnicast() {
			if err := netlink.AddrDel(link, &addr); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove address %s from %s: %w", p, link.Attrs().Name, err)
			}
		}
	}
	for p := range missing {
		if err := netlink.AddrAdd(link, address(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
		}
	}
	return nil
}

// address is p for netlink. IPv6 addresses are in use at once: the ledger rules duplicates out.
func address(p netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	return addr
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	ip, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits)
}

// podLink describes the link of one pod.
type podLink struct {
	host      string // name of the host's end
	bridge    netlink.Link
	addresses []netip.Prefix
	gateways  []netip.Prefix
}

// connect makes the link from the bridge to eth0 in the namespace and configures it. What it leaves on an error goes
// with disconnect.
func (l podLink) connect(ns *os.File) error {
	// The address was free: a link of this name is a leftover.
	if err := disconnect(l.host); err != nil {
		return err
	}
	mtu := l.bridge.Attrs().MTU
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: l.host, MTU: mtu, TxQLen: -1, MasterIndex: l.bridge.Attrs().Index},
		PeerName:      interfaceName,
		PeerTxQLen:    -1,
		PeerNamespace: netlink.NsFd(int(ns.Fd())),
		// An address follows its MAC: whoever remembers the pair reaches the pod that has the address now.
		PeerHardwareAddr: podMAC(l.addresses[0].Addr()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add interface %s to the pod: it has one of that name already: %w", interfaceName, errdefs.ErrAlreadyExists)
		}
		return fmt.Errorf("add interface %s to the pod: %w", interfaceName, err)
	}
	if err := netlink.LinkSetHairpin(veth, true); err != nil {
		return fmt.Errorf("set hairpin mode of %s: %w", l.host, err)
	}
	if hasIPv6() { // the port of a bridge has no use for addresses
		if err := setInterfaceSysctls(l.host, map[string]string{"ipv6/disable_ipv6": "1"}); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return fmt.Errorf("set %s up: %w", l.host, err)
	}
	return netns.DoFile(ns, l.configure)
}

// podMAC is a locally administered address made of the last bytes of the pod's first address.
func podMAC(ip netip.Addr) net.HardwareAddr {
	raw := ip.AsSlice()
	return append(net.HardwareAddr{0x02, 0x70}, raw[len(raw)-4:]...)
}

// configure runs in the pod's namespace.
func (l podLink) configure() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in the pod: %w", err)
	}
	defer handle.Close()
	eth0, err := handle.LinkByName(interfaceName)
	if err != nil {
		return fmt.Errorf("find interface %s of the pod: %w", interfaceName, err)
	}
	if hasIPv6() {
		settings := map[string]string{"ipv6/accept_ra": "0"} // another pod could send them
		if l.addresses[len(l.addresses)-1].Addr().Is6() {
			settings["ipv6/disable_ipv6"] = "0"
		}
		if err := setInterfaceSysctls(interfaceName, settings); err != nil {
			return err
		}
	}
	for _, p := range l.addresses {
		if err := handle.AddrAdd(eth0, address(p)); err != nil {
			return fmt.Errorf("add address %s to %s of the pod: %w", p, interfaceName, err)
		}
	}
	if err := handle.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("set %s of the pod up: %w", interfaceName, err)
	}
	for _, g := range l.gateways {
		route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: g.Addr().AsSlice(), Dst: everything(g.Addr())}
		if err := handle.RouteAdd(route); err != nil {
			return fmt.Errorf("add the default route by %s to the pod: %w", g.Addr(), err)
		}
	}
	return nil
}

// everything is 0.0.0.0/0 or ::/0.
func everything(like netip.Addr) *net.IPNet {
	n := like.BitLen() / 8
	return &net.IPNet{IP: make(net.IP, n), Mask: make(net.IPMask, n)}
}

// disconnect removes a link by the name of the host's end; one that has gone is no error.
func disconnect(name string) error {
	link, err := findLink(name)
	if err != nil || link == nil {
		return err
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove interface %s: %w", name, err)
	}
	return nil
}

// findLink returns nil where there is no interface of the name.
func findLink(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return link, nil
}
