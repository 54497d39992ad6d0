package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// free fails with ErrAlreadyExists when a process of the host has the port, which the pod would take from it, and with
// ErrInvalidArgument when the host does not have the address.
func (p hostPort) free() error {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	ip := p.HostIP
	if !ip.IsValid() {
		ip = netip.IPv4Unspecified()
		if hasIPv6() {
			ip = netip.IPv6Unspecified() // covers IPv4 as well
		}
	}
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: int(p.HostPort)}
	if ip.Is4() {
		addr.(*unix.SockaddrInet4).Addr = ip.As4()
	} else {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(p.HostPort), Addr: ip.As16()}
	}
	if p.Protocol == "udp" {
		kind = unix.SOCK_DGRAM
	}
	number, _ := protocolNumber(p.Protocol)
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, int(number))
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // then nothing listens there either
	}
	if err != nil {
		return fmt.Errorf("host port %s: %w", p, err)
	}
	defer unix.Close(fd)
	// Connections that wait for their end do not keep the port.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, boolInt(kind == unix.SOCK_STREAM)); err != nil {
		return fmt.Errorf("host port %s: %w", p, err)
	}
	switch err := unix.Bind(fd, addr); {
	case errors.Is(err, unix.EADDRINUSE):
		if there, err := p.listener(); err != nil || !there {
			return err // a client's end of a connection has the port for a while: nobody waits for packets there
		}
		return fmt.Errorf("host port %s is in use by a process of this host: %w", p, errdefs.ErrAlreadyExists)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("host port %s: this host has no such address: %w", p, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("host port %s: %w", p, err)
	}
	return nil
}

// The states of sockets that wait for packets of anybody, of net/tcp_states.h.
const (
	stateClose  = 7 // UDP without a peer
	stateListen = 10
)

// listener says whether a socket of the host waits for packets on the port.
func (p hostPort) listener() (bool, error) {
	list, state := netlink.SocketDiagTCP, uint8(stateListen)
	switch p.Protocol {
	case "udp":
		list, state = netlink.SocketDiagUDP, stateClose
	case "sctp":
		return true, nil
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := list(family)
		if err != nil {
			return false, fmt.Errorf("host port %s: list sockets: %w", p, err)
		}
		for _, s := range sockets {
			if s.State == state && s.ID.SourcePort == p.HostPort {
				return true, nil
			}
		}
	}
	return false, nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// forgetFlows removes the kernel's memory of UDP flows to the ports: packets of a flow that was there before the port
// would go on to where they went then.
func forgetFlows(ports []hostPort) error {
	for _, p := range ports {
		if p.Protocol != "udp" {
			continue
		}
		filter := &netlink.ConntrackFilter{}
		if err := errors.Join(filter.AddProtocol(unix.IPPROTO_UDP), filter.AddPort(netlink.ConntrackOrigDstPort, p.HostPort)); err != nil {
			return fmt.Errorf("host port %s: describe flows: %w", p, err)
		}
		if p.HostIP.IsValid() {
			if err := filter.AddIP(netlink.ConntrackOrigDstIP, net.IP(p.HostIP.AsSlice())); err != nil {
				return fmt.Errorf("host port %s: describe flows: %w", p, err)
			}
		}
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter); err != nil {
				return fmt.Errorf("host port %s: forget flows: %w", p, err)
			}
		}
	}
	return nil
}
