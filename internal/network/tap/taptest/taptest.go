// Package taptest stands in for a virtual machine in tests of the network: a namespace whose interface is connected to
// a NIC's tap device. It belongs to tests only and holds no state.
package taptest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/network/tap"
)

// Guest makes a namespace whose interface has what the NIC says, in the order in which a guest applies it, and carries
// frames to and fro, their virtio-net headers included. It returns the path of the namespace, which goes with the test;
// the NIC's tap device is not closed.
func Guest(t *testing.T, nic tap.NIC) string {
	t.Helper()
	ns, err := netns.Create(filepath.Join(t.TempDir(), "ns"), "guest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(ns); err != nil {
			t.Error(err)
		}
	})
	var wire *os.File
	err = netns.Do(ns, func() error {
		wire, err = boot(nic)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { wire.Close() })
	go carry(nic.Tap, wire)
	go carry(wire, nic.Tap)
	return ns
}

// boot runs in the guest's namespace.
func boot(nic tap.NIC) (*os.File, error) {
	device := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: nic.Name}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, Queues: 1, NonPersist: true,
	}
	if err := netlink.LinkAdd(device); err != nil {
		return nil, fmt.Errorf("make the guest's interface: %w", err)
	}
	fd, err := unix.FcntlInt(device.Fds[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	device.Fds[0].Close()
	if err == nil {
		err = unix.SetNonblock(fd, true) // so that Close ends a Read
	}
	if err != nil {
		return nil, err
	}
	wire := os.NewFile(uintptr(fd), "guest")
	if err := apply(nic); err != nil {
		wire.Close()
		return nil, err
	}
	return wire, nil
}

func apply(nic tap.NIC) error {
	link, err := netlink.LinkByName(nic.Name)
	if err != nil {
		return err
	}
	if err := errors.Join(netlink.LinkSetHardwareAddr(link, nic.MAC), netlink.LinkSetMTU(link, nic.MTU), netlink.LinkSetUp(link)); err != nil {
		return err
	}
	for _, a := range nic.Addresses {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	for _, r := range nic.Routes {
		route := netlink.Route{LinkIndex: link.Attrs().Index, Gw: r.Gateway.AsSlice(), Src: r.Source.AsSlice(), Scope: netlink.Scope(r.Scope), Priority: r.Metric}
		if d := r.Destination; d.IsValid() {
			route.Dst = &net.IPNet{IP: d.Addr().AsSlice(), Mask: net.CIDRMask(d.Bits(), d.Addr().BitLen())}
		}
		if r.OnLink {
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteAdd(&route); err != nil {
			return fmt.Errorf("add route %+v: %w", r, err)
		}
	}
	for _, n := range nic.Neighbors {
		entry := &netlink.Neigh{LinkIndex: link.Attrs().Index, IP: n.Address.AsSlice(), HardwareAddr: n.MAC, State: netlink.NUD_PERMANENT}
		if err := netlink.NeighAdd(entry); err != nil {
			return fmt.Errorf("add neighbour %s: %w", n.Address, err)
		}
	}
	return nil
}

// carry ends when either side is closed.
func carry(from, to *os.File) {
	frame := make([]byte, 128<<10)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		if _, err := to.Write(frame[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}
