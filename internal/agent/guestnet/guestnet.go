package guestnet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	statsv1 "github.com/pistis-run/pistis/api/stats/v1"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// Loopback brings lo up. It is on the way of every boot, where one ioctl costs less than netlink's two exchanges.
func Loopback() error {
	if err := loopback(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// Apply makes the network what n says: interfaces that it does not name lose their addresses and go down.
// What cannot be understood is refused before anything is changed.
func Apply(n *agentv1.Network) error {
	p, err := parse(n)
	if err != nil {
		return err
	}
	found, err := find(p)
	if err != nil {
		return err
	}
	if err := reset(found); err != nil {
		return err
	}
	index := map[string]int{}
	for _, l := range p.links {
		if err := up(l, found[l.name]); err != nil {
			return fmt.Errorf("network: interface %s: %w", l.name, err)
		}
		index[l.name] = found[l.name].Attrs().Index
	}
	for _, n := range p.neighbours {
		n.LinkIndex = index[n.link]
		if err := netlink.NeighSet(&n.Neigh); err != nil {
			return fmt.Errorf("network: neighbour %s on %s: %w", n.IP, n.link, err)
		}
	}
	// A gateway must be reachable when its route is added: routes to links come first.
	slices.SortStableFunc(p.routes, func(a, b route) int { return cmp.Compare(len(a.Gw), len(b.Gw)) })
	for _, r := range p.routes {
		r.LinkIndex = index[r.link]
		if err := addRoute(r); err != nil {
			return err
		}
	}
	return nil
}

// find returns the links of the plan by the name that they are to have.
func find(p *plan) (map[string]netlink.Link, error) {
	links, err := rtnl.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("network: list interfaces: %w", err)
	}
	found := map[string]netlink.Link{}
	for _, l := range p.links {
		i := slices.IndexFunc(links, func(have netlink.Link) bool { return bytes.Equal(have.Attrs().HardwareAddr, l.mac) })
		if i < 0 {
			return nil, fmt.Errorf("network: interface %s: no card has the MAC address %s: %w", l.name, l.mac, errdefs.ErrNotFound)
		}
		found[l.name] = links[i]
	}
	return found, nil
}

// reset takes every interface down, which removes its routes, removes its addresses and neighbours, and gives
// those of the plan a name that cannot be in the way of another's.
func reset(found map[string]netlink.Link) error {
	links, err := rtnl.Dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("network: list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Attrs().Flags&net.FlagLoopback != 0 {
			continue
		}
		if err := clear(l); err != nil {
			return fmt.Errorf("network: reset %s: %w", l.Attrs().Name, err)
		}
	}
	for name, l := range found {
		if l.Attrs().Name == name {
			continue
		}
		if err := netlink.LinkSetName(l, fmt.Sprintf("pistis%d", l.Attrs().Index)); err != nil {
			return fmt.Errorf("network: rename %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

func clear(l netlink.Link) error {
	if err := netlink.LinkSetDown(l); err != nil {
		return err
	}
	addrs, err := rtnl.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
	}
	neighbours, err := rtnl.Dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(l.Attrs().Index, netlink.FAMILY_ALL) })
	if err != nil {
		return err
	}
	for _, n := range neighbours {
		if n.State&netlink.NUD_PERMANENT == 0 {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func up(l link, have netlink.Link) error {
	if have.Attrs().Name != l.name {
		if err := netlink.LinkSetName(have, l.name); err != nil {
			return fmt.Errorf("rename: %w", err)
		}
	}
	if l.mtu > 0 && l.mtu != have.Attrs().MTU {
		if err := netlink.LinkSetMTU(have, l.mtu); err != nil {
			return fmt.Errorf("mtu %d: %w", l.mtu, err)
		}
	}
	// Routers have no say: the host gave the whole configuration. Without IPv6 there is no such file.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+l.name+"/accept_ra", []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("router advertisements: %w", err)
	}
	if err := netlink.LinkSetUp(have); err != nil {
		return fmt.Errorf("up: %w", err)
	}
	for _, a := range l.addresses {
		if err := netlink.AddrReplace(have, &a); err != nil {
			return fmt.Errorf("address %s: %w", a.IPNet, err)
		}
	}
	return nil
}

// addRoute adds a route. The kernel has made some of them from the addresses.
func addRoute(r route) error {
	err := netlink.RouteAdd(&r.Route)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EEXIST) {
		same, listErr := rtnl.Dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(r.Family, &netlink.Route{LinkIndex: r.LinkIndex, Dst: r.Dst, Gw: r.Gw},
				netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST|netlink.RT_FILTER_GW)
		})
		if listErr == nil && len(same) > 0 {
			return nil
		}
	}
	return fmt.Errorf("network: route to %s by %s on %s: %w", r.Dst, r.Gw, r.link, err)
}

// Stats counts the traffic of every interface but the loopback.
func Stats() ([]*statsv1.InterfaceStats, error) {
	links, err := rtnl.Dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("network: list interfaces: %w", err)
	}
	var stats []*statsv1.InterfaceStats
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback != 0 || a.Statistics == nil {
			continue
		}
		s := a.Statistics
		stats = append(stats, &statsv1.InterfaceStats{
			Name: a.Name, RxBytes: s.RxBytes, RxErrors: s.RxErrors, RxPackets: s.RxPackets, RxDropped: s.RxDropped,
			TxBytes: s.TxBytes, TxErrors: s.TxErrors, TxPackets: s.TxPackets, TxDropped: s.TxDropped,
		})
	}
	return stats, nil
}
