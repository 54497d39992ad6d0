package tap_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/network/tap"
	"github.com/pistis-run/pistis/internal/network/tap/taptest"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// patience bounds what must happen soon.
const patience = 10 * time.Second

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newNetNS makes a namespace that goes with the test.
func newNetNS(t *testing.T, id string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test makes network namespaces and needs root")
	}
	path, err := netns.Create(filepath.Join(t.TempDir(), "ns"), id)
	must(t, err)
	t.Cleanup(func() { must(t, netns.Remove(path)) })
	return path
}

func in(t *testing.T, ns string, fn func() error) {
	t.Helper()
	must(t, netns.Do(ns, fn))
}

// tool runs a command in the namespace.
func tool(t *testing.T, ns string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skipf("SKIPPED: this test needs the command %s", args[0])
	}
	in(t, ns, func() error {
		cmd := exec.Command(args[0], args[1:]...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	})
}

// wire makes a pod namespace whose eth0 is linked to wire0 in a namespace that stands for the host: 10.9.0.1 and
// fd09::1 there, 10.9.0.2 and fd09::2 in the pod, with default routes.
func wire(t *testing.T, mtu int) (host, pod string) {
	t.Helper()
	host, pod = newNetNS(t, "host"), newNetNS(t, "pod")
	ns, err := netns.Open(pod)
	must(t, err)
	defer ns.Close()
	in(t, host, func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "wire0", MTU: mtu, TxQLen: -1}, PeerName: "eth0", PeerTxQLen: -1, PeerNamespace: netlink.NsFd(int(ns.Fd())),
		})
		if err != nil {
			return err
		}
		return configure("wire0", "10.9.0.1/24", "fd09::1/64")
	})
	must(t, netns.DoFile(ns, func() error {
		if err := configure("eth0", "10.9.0.2/24", "fd09::2/64"); err != nil {
			return err
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, gw := range []string{"10.9.0.1", "fd09::1"} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
				return err
			}
		}
		return nil
	}))
	return host, pod
}

func configure(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range addrs {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		if addr.IP.To4() == nil {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return nil
}

func attachOne(t *testing.T, pod string) tap.NIC {
	t.Helper()
	nics, err := tap.Attach(t.Context(), pod)
	must(t, err)
	t.Cleanup(func() {
		for _, nic := range nics {
			nic.Tap.Close()
		}
	})
	if len(nics) != 1 {
		t.Fatalf("%d NICs, want 1", len(nics))
	}
	return nics[0]
}

// exchange sends size bytes over TCP from one namespace to a listener in the other and reads them back.
func exchange(t *testing.T, from, to, addr string, size int) error {
	t.Helper()
	var listener net.Listener
	in(t, to, func() (err error) {
		listener, err = net.Listen("tcp", addr)
		return err
	})
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(conn, conn)
	}()
	return netns.Do(from, func() error {
		conn, err := net.DialTimeout("tcp", listener.Addr().String(), patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		sent := make([]byte, size)
		for i := range sent {
			sent[i] = byte(i % 251)
		}
		go func() {
			_, _ = conn.Write(sent)
			_ = conn.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if err == nil && !slices.Equal(got, sent) {
			err = fmt.Errorf("got %d bytes back that are not the %d bytes sent", len(got), len(sent))
		}
		return err
	})
}

func TestAttachCarriesPackets(t *testing.T) {
	host, pod := wire(t, 1400)
	nic := attachOne(t, pod)
	if nic.Name != "eth0" || nic.MTU != 1400 || len(nic.MAC) != 6 {
		t.Errorf("NIC is %+v", nic)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24"), netip.MustParsePrefix("fd09::2/64")}; !slices.Equal(nic.Addresses, want) {
		t.Errorf("addresses are %v, want %v", nic.Addresses, want)
	}
	want := []tap.Route{{Gateway: netip.MustParseAddr("10.9.0.1")}, {Gateway: netip.MustParseAddr("fd09::1"), Metric: 1024}}
	if !slices.Equal(nic.Routes, want) {
		t.Errorf("routes are %+v, want %+v", nic.Routes, want)
	}
	vm := taptest.Guest(t, nic)
	for _, c := range []struct{ name, from, to, addr string }{
		{"to the guest", host, vm, "10.9.0.2:80"},
		{"to the guest, IPv6", host, vm, "[fd09::2]:80"},
		{"from the guest", vm, host, "10.9.0.1:80"},
		{"from the guest, IPv6", vm, host, "[fd09::1]:80"},
	} {
		if err := exchange(t, c.from, c.to, c.addr, 1<<20); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	checkMTU(t, host, vm, 1400)
	must(t, tap.Detach(t.Context(), pod))
	must(t, tap.Detach(t.Context(), pod))
	// The interface is an ordinary one again.
	if err := exchange(t, host, pod, "10.9.0.2:80", 10); err != nil {
		t.Errorf("after Detach: %v", err)
	}
}

// checkMTU sends the largest datagram that may not be fragmented, and one byte more.
func checkMTU(t *testing.T, to, from string, mtu int) {
	t.Helper()
	var server net.PacketConn
	in(t, to, func() (err error) {
		server, err = net.ListenPacket("udp4", "10.9.0.1:99")
		return err
	})
	defer server.Close()
	in(t, from, func() error {
		conn, err := net.Dial("udp4", "10.9.0.1:99")
		if err != nil {
			return err
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		var sockErr error
		err = raw.Control(func(fd uintptr) {
			sockErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
		})
		if err := errors.Join(err, sockErr); err != nil {
			return err
		}
		const headers = 28
		if _, err := conn.Write(make([]byte, mtu-headers+1)); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("a datagram larger than the MTU: %v", err)
		}
		_, err = conn.Write(make([]byte, mtu-headers))
		return err
	})
	_ = server.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 2*mtu)
	if n, _, err := server.ReadFrom(buf); err != nil || n != mtu-28 {
		t.Errorf("got %d bytes, %v; want a datagram of the whole MTU", n, err)
	}
}

// TestOnlyTheGuestAnswers counts ARP replies on the host's side: none while nobody reads the tap, one with a guest.
func TestOnlyTheGuestAnswers(t *testing.T) {
	host, pod := wire(t, 1500)
	nic := attachOne(t, pod)
	if replies := arping(t, host, 500*time.Millisecond); replies != 0 {
		t.Errorf("%d ARP replies without a guest: the host's kernel answers for it", replies)
	}
	if err := netns.Do(host, func() error {
		conn, err := net.DialTimeout("tcp", "[fd09::2]:80", 500*time.Millisecond)
		if err == nil {
			conn.Close()
		}
		return err
	}); err == nil || errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the host's kernel answers for the guest over IPv6: %v", err)
	}
	taptest.Guest(t, nic)
	if replies := arping(t, host, time.Second); replies != 1 {
		t.Errorf("%d ARP replies with a guest, want 1", replies)
	}
}

// arping asks once for 10.9.0.2 and counts the replies until the limit.
func arping(t *testing.T, ns string, limit time.Duration) (replies int) {
	t.Helper()
	in(t, ns, func() error {
		link, err := netlink.LinkByName("wire0")
		if err != nil {
			return err
		}
		const arp = unix.ETH_P_ARP<<8&0xff00 | unix.ETH_P_ARP>>8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, arp)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrLinklayer{Protocol: arp, Ifindex: link.Attrs().Index}
		if err := unix.Bind(fd, to); err != nil {
			return err
		}
		mac := link.Attrs().HardwareAddr
		frame := slices.Concat([]byte{255, 255, 255, 255, 255, 255}, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1},
			mac, []byte{10, 9, 0, 1}, make([]byte, 6), []byte{10, 9, 0, 2})
		if err := unix.Sendto(fd, frame, 0, to); err != nil {
			return err
		}
		buf := make([]byte, 128)
		for end := time.Now().Add(limit); ; {
			left := time.Until(end)
			if left <= 0 {
				return nil
			}
			wait := unix.NsecToTimeval(left.Nanoseconds())
			if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
				return err
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return err
			}
			const reply = 2
			if n >= 42 && buf[21] == reply && slices.Equal(buf[28:32], []byte{10, 9, 0, 2}) {
				replies++
			}
		}
	})
	return replies
}

func TestAttachAgainAndAfterACrash(t *testing.T) {
	host, pod := wire(t, 1500)
	nics, err := tap.Attach(t.Context(), pod)
	must(t, err)
	nics[0].Tap.Close() // the shim died: the device goes, the redirection stays
	for range 100 {
		nics, err := tap.Attach(t.Context(), pod)
		must(t, err)
		must(t, nics[0].Tap.Close())
	}
	nic := attachOne(t, pod)
	if err := exchange(t, taptest.Guest(t, nic), host, "10.9.0.1:80", 10); err != nil {
		t.Error(err)
	}
	in(t, pod, func() error {
		links, err := rtnl.Dump(netlink.LinkList)
		if len(links) != 3 {
			t.Errorf("%d interfaces, want lo, eth0 and one tap device", len(links))
		}
		return err
	})
	if _, err := tap.Attach(t.Context(), pod+"gone"); !errdefs.IsNotFound(err) {
		t.Errorf("a namespace that is gone: %v", err)
	}
	must(t, tap.Detach(t.Context(), pod+"gone"))
}

func TestAttachPointToPoint(t *testing.T) {
	// As the ptp plugin and Calico do: one address, a gateway by a link route, a permanent neighbour, a smaller MTU.
	_, pod := wire(t, 1500)
	tool(t, pod, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
	for _, args := range []string{
		"-6 route flush dev eth0 proto boot",
		"addr add 10.7.0.2/24 dev eth0 noprefixroute",
		"addr add fd07::2/64 dev eth0 nodad noprefixroute",
		"route add 169.254.1.1 dev eth0 scope link",
		"route add default via 169.254.1.1 dev eth0 mtu 1450",
		"route add 10.200.0.0/16 via 169.254.1.1 dev eth0 src 10.7.0.2 metric 5",
		"-6 route add fd07::1 dev eth0",
		"-6 route add default via fd07::1 dev eth0 metric 7",
		"neigh add 169.254.1.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
	} {
		tool(t, pod, append([]string{"ip"}, strings.Fields(args)...)...)
	}
	nic := attachOne(t, pod)
	link := netip.MustParseAddr("169.254.1.1")
	want := []tap.Route{
		{Destination: netip.MustParsePrefix("169.254.1.1/32"), Scope: 253},
		{Destination: netip.MustParsePrefix("fd07::1/128"), Metric: 1024},
		{Gateway: link},
		{Destination: netip.MustParsePrefix("10.200.0.0/16"), Gateway: link, Source: netip.MustParseAddr("10.7.0.2"), Metric: 5},
		{Gateway: netip.MustParseAddr("fd07::1"), Metric: 7},
	}
	if !slices.Equal(nic.Routes, want) {
		t.Errorf("routes are\n%+v, want\n%+v", nic.Routes, want)
	}
	if want := []netip.Prefix{netip.MustParsePrefix("10.7.0.2/32"), netip.MustParsePrefix("fd07::2/128")}; !slices.Equal(nic.Addresses, want) {
		t.Errorf("addresses are %v, want %v", nic.Addresses, want)
	}
	if len(nic.Neighbors) != 1 || nic.Neighbors[0].Address != link || nic.Neighbors[0].MAC.String() != "02:00:00:00:00:01" {
		t.Errorf("neighbours are %v", nic.Neighbors)
	}
	if nic.MTU != 1450 {
		t.Errorf("MTU is %d, want that of the route", nic.MTU)
	}
	taptest.Guest(t, nic) // takes all of it
}

func TestInspectRefuses(t *testing.T) {
	for _, c := range []struct {
		name     string
		commands []string
		says     string
	}{
		{"iptables", []string{"iptables-nft -A INPUT -s 10.0.0.0/8 -j DROP"}, "nftables rules in table ip filter, chain INPUT"},
		{"policy", []string{"ip6tables-nft -P INPUT DROP"}, "policy drop in table ip6 filter, chain INPUT"},
		{"old iptables", []string{"iptables-legacy -t nat -A PREROUTING -p tcp -j REDIRECT --to-ports 15001"}, "iptables rules in table nat (1)"},
		{"old ip6tables", []string{"ip6tables-legacy -A OUTPUT -j DROP"}, "ip6tables rules in table filter (1)"},
		{"nft", []string{"nft add table netdev mesh", "nft add chain netdev mesh in { type filter hook ingress device eth0 priority 0 ; }", "nft add rule netdev mesh in drop"}, "netdev mesh, chain in"},
		{"qdisc", []string{"tc qdisc add dev eth0 root tbf rate 1mbit burst 10k latency 50ms"}, "queueing discipline tbf on interface eth0"},
		{"ingress", []string{"tc qdisc add dev eth0 ingress", "tc filter add dev eth0 parent ffff: prio 1 protocol ip u32 match u32 0 0 action mirred egress redirect dev lo"}, "queueing discipline ingress"},
		{"clsact", []string{"tc qdisc add dev eth0 clsact"}, "queueing discipline clsact"},
		{"rule", []string{"ip rule add from 10.9.0.2 table 100"}, "policy rule"},
		{"rule without conditions", []string{"ip -6 rule add priority 5 table 100"}, "IPv6 policy rule"},
		{"next hops", []string{"ip route add 10.77.0.0/16 nexthop via 10.9.0.1 weight 1 nexthop via 10.9.0.3 weight 1"}, "several next hops"},
		{"blackhole", []string{"ip route add blackhole 10.78.0.0/16"}, "not an ordinary route"},
		{"bridge", []string{"ip link add br0 type bridge", "ip link set br0 up"}, "interface br0 (bridge)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, pod := wire(t, 1500)
			for _, command := range c.commands {
				tool(t, pod, strings.Fields(command)...)
			}
			_, err := tap.Attach(t.Context(), pod)
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want FailedPrecondition that says %q", err, c.says)
			}
			in(t, pod, func() error {
				links, err := rtnl.Dump(netlink.LinkList)
				for _, l := range links {
					if l.Type() == "tuntap" {
						t.Errorf("tap device %s is left", l.Attrs().Name)
					}
				}
				return err
			})
		})
	}
}

func TestInspectLetsPass(t *testing.T) {
	_, pod := wire(t, 1500)
	tool(t, pod, "iptables-nft", "-L") // leaves empty tables
	tool(t, pod, "iptables-legacy", "-t", "nat", "-L")
	tool(t, pod, "ip", "link", "add", "spare", "type", "veth", "peer", "spare-peer") // down and bare
	in(t, pod, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv4/conf/eth0/rp_filter", []byte("2"), 0o644),
			os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_ra", []byte("0"), 0o644),
			os.WriteFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", []byte("0"), 0o644))
	})
	report, err := tap.Inspect(t.Context(), pod)
	must(t, err)
	if len(report.Problems) > 0 {
		t.Errorf("problems: %q", report.Problems)
	}
	if len(report.Sysctls) != 1 || report.Sysctls["net.ipv4.ip_unprivileged_port_start"] != "0" {
		t.Errorf("sysctls of the namespace: %v", report.Sysctls)
	}
	nic := attachOne(t, pod)
	if len(nic.Sysctls) != 2 || nic.Sysctls["net.ipv4.conf.eth0.rp_filter"] != "2" || nic.Sysctls["net.ipv6.conf.eth0.accept_ra"] != "0" {
		t.Errorf("sysctls of the interface: %v", nic.Sysctls)
	}
	if report, err := tap.Inspect(t.Context(), pod); err != nil || len(report.Problems) > 0 {
		t.Errorf("after Attach: %q, %v", report.Problems, err)
	}
}

func TestAttachSeveral(t *testing.T) {
	_, pod := wire(t, 1500)
	tool(t, pod, "ip", "link", "add", "net1", "type", "veth", "peer", "elsewhere")
	tool(t, pod, "ip", "link", "set", "net1", "up")
	nics, err := tap.Attach(t.Context(), pod)
	must(t, err)
	var names []string
	for _, nic := range nics {
		names = append(names, nic.Name)
		nic.Tap.Close()
	}
	if len(names) != 2 || names[0] != "eth0" && names[1] != "eth0" {
		t.Errorf("NICs are %v", names)
	}
}

func BenchmarkInspect(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("SKIPPED: needs root")
	}
	path, err := netns.Create(b.TempDir(), "pod")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = netns.Remove(path) }()
	for b.Loop() {
		if _, err := tap.Inspect(b.Context(), path); err != nil {
			b.Fatal(err)
		}
	}
}
