package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// bridgeOptions gives every test a bridge and prefixes of its own.
func bridgeOptions(t *testing.T) BridgeOptions {
	t.Helper()
	needsRoot(t)
	var n uint16
	for _, c := range t.Name() {
		n = n*31 + uint16(c)
	}
	return BridgeOptions{
		Name:     fmt.Sprintf("ptst%04x", n),
		IPv4:     netip.MustParsePrefix(fmt.Sprintf("10.%d.%d.0/24", n>>8, n&0xff)),
		IPv6:     netip.MustParsePrefix(fmt.Sprintf("fd00:%x::/64", n)),
		StateDir: t.TempDir(),
	}
}

func newBridge(t *testing.T, opts BridgeOptions) *Bridge {
	t.Helper()
	b, err := NewBridge(opts)
	must(t, err)
	t.Cleanup(func() {
		if err := b.Wipe(t.Context()); err != nil && !errdefs.IsUnavailable(err) {
			t.Error(err)
		}
	})
	return b
}

// setup gives a fresh pod a network.
func setup(t *testing.T, n network, id string, ports ...Port) (Pod, Result) {
	t.Helper()
	pod := Pod{ID: id, Namespace: "default", Name: id, NetNS: newNetNS(t, id), Ports: ports}
	result, err := n.Setup(t.Context(), pod)
	must(t, err)
	return pod, result
}

// TestBridgeReachability runs with the kernel sending bridged packets through netfilter, and without: other software on
// a host may want either.
func TestBridgeReachability(t *testing.T) {
	for _, through := range []string{"1", "0"} {
		t.Run("bridge-nf-call="+through, func(t *testing.T) {
			for _, key := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
				needsRoot(t)
				path := "/proc/sys/net/bridge/" + key
				if _, err := setSysctl(path, through); errors.Is(err, os.ErrNotExist) && through == "1" {
					t.Skip("SKIPPED: this kernel has no br_netfilter")
				} else if !errors.Is(err, os.ErrNotExist) {
					must(t, err)
					t.Cleanup(func() { _, _ = setSysctl(path, "1") })
				}
			}
			testReachability(t)
		})
	}
}

func testReachability(t *testing.T) {
	b := newBridge(t, bridgeOptions(t))
	away := outside(t)
	one, oneResult := setup(t, b, "one", Port{HostPort: 8080, ContainerPort: 80}, Port{Protocol: "udp", HostPort: 8080, ContainerPort: 80})
	two, twoResult := setup(t, b, "two")
	if len(oneResult.IPs) != 2 || !oneResult.IPs[0].Is4() || !oneResult.IPs[1].Is6() {
		t.Fatalf("addresses are %v, want IPv4 and IPv6", oneResult.IPs)
	}
	for _, ns := range []string{one.NetNS, away, ""} {
		serve(t, ns, 80)
	}
	gw4, gw6 := b.gateways()[0].Addr(), b.gateways()[1].Addr()
	one4, one6 := oneResult.IPs[0], oneResult.IPs[1]
	two4, two6 := twoResult.IPs[0], twoResult.IPs[1]
	at := func(ip string, port uint16) string { return netip.AddrPortFrom(netip.MustParseAddr(ip), port).String() }
	for _, c := range []struct {
		name, from string
		to         string
		seen       netip.Addr // as whom the server sees the client
	}{
		{"pod to pod", two.NetNS, at(one4.String(), 80), two4},
		{"pod to pod, IPv6", two.NetNS, at(one6.String(), 80), two6},
		{"pod to host", two.NetNS, at(gw4.String(), 80), two4},
		{"pod to host, IPv6", two.NetNS, at(gw6.String(), 80), two6},
		{"host to pod", "", at(one4.String(), 80), gw4},
		{"host to pod, IPv6", "", at(one6.String(), 80), gw6},
		{"pod to the outside is masqueraded", two.NetNS, at("192.0.2.2", 80), netip.MustParseAddr("192.0.2.1")},
		{"pod to the outside is masqueraded, IPv6", two.NetNS, at("2001:db8::2", 80), netip.MustParseAddr("2001:db8::1")},
		{"outside to host port", away, at("192.0.2.1", 8080), netip.MustParseAddr("192.0.2.2")},
		{"outside to host port, IPv6", away, at("2001:db8::1", 8080), netip.MustParseAddr("2001:db8::2")},
		{"pod to host port of another", two.NetNS, at("192.0.2.1", 8080), gw4},
		{"pod to host port of another, IPv6", two.NetNS, at("2001:db8::1", 8080), gw6},
		{"pod to its own host port", one.NetNS, at("192.0.2.1", 8080), gw4},
		{"pod to its own host port, IPv6", one.NetNS, at("2001:db8::1", 8080), gw6},
		{"pod to its own host port at the gateway", one.NetNS, at(gw4.String(), 8080), gw4},
		{"host to host port", "", at("192.0.2.1", 8080), netip.MustParseAddr("192.0.2.1")},
		{"host to host port, IPv6", "", at("2001:db8::1", 8080), netip.MustParseAddr("2001:db8::1")},
		{"host to host port on localhost", "", at("127.0.0.1", 8080), gw4},
	} {
		for _, network := range []string{"tcp", "udp"} {
			seen, err := ask(c.from, network, c.to)
			if err != nil {
				t.Errorf("%s over %s: %v", c.name, network, err)
			} else if seen != c.seen {
				t.Errorf("%s over %s: the server saw %s, want %s", c.name, network, seen, c.seen)
			}
		}
	}
	must(t, b.Check(t.Context(), one))
	// Clients go on to 127.0.0.1 when ::1 refuses.
	if _, err := ask("", "tcp", at("::1", 8080)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("host port on ::1: %v", err)
	}
}

// TestBridgeGuard sends what a hostile guest can: frames that no stack of its own would make.
func TestBridgeGuard(t *testing.T) {
	b := newBridge(t, bridgeOptions(t))
	pod, result := setup(t, b, "pod")
	own, gateway := result.IPs[0], b.gateways()[0].Addr()
	loopback := netip.MustParseAddr("127.0.0.1")
	server, err := net.ListenPacket("udp4", "0.0.0.0:7070")
	must(t, err)
	defer server.Close()
	bridge, err := netlink.LinkByName(b.opts.Name)
	must(t, err)
	for i, c := range []struct {
		name     string
		from, to netip.Addr
		arrives  bool
	}{
		{"to the host's loopback", own, loopback, false},
		{"from the loopback", loopback, gateway, false},
		{"from a foreign address", netip.MustParseAddr("203.0.113.5"), gateway, false},
		{"honest", own, gateway, true},
	} {
		payload := fmt.Sprint("packet ", i)
		must(t, netns.Do(pod.NetNS, func() error {
			return sendFrame("eth0", bridge.Attrs().HardwareAddr, netip.AddrPortFrom(c.from, 7071), netip.AddrPortFrom(c.to, 7070), payload)
		}))
		limit := patience
		if !c.arrives {
			limit = 200 * time.Millisecond
		}
		_ = server.SetReadDeadline(time.Now().Add(limit))
		buf := make([]byte, 64)
		n, _, err := server.ReadFrom(buf)
		if arrived := err == nil && string(buf[:n]) == payload; arrived != c.arrives {
			t.Errorf("%s: a packet arrived: %v (%v)", c.name, arrived, err)
		}
	}
}

// sendFrame sends a UDP datagram out of the interface, whatever the kernel's own routes say.
func sendFrame(name string, to net.HardwareAddr, src, dst netip.AddrPort, payload string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	be := binary.BigEndian
	ip := append([]byte{0x45, 0}, be.AppendUint16(nil, uint16(28+len(payload)))...)
	ip = append(ip, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	ip = slices.Concat(ip, src.Addr().AsSlice(), dst.Addr().AsSlice())
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(be.Uint16(ip[i:]))
	}
	be.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	udp := be.AppendUint16(be.AppendUint16(nil, src.Port()), dst.Port())
	udp = be.AppendUint16(udp, uint16(8+len(payload)))
	frame := slices.Concat(to, link.Attrs().HardwareAddr, []byte{8, 0}, ip, udp, []byte{0, 0}, []byte(payload))
	return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index})
}

func TestBridgePortsAreRefused(t *testing.T) {
	b := newBridge(t, bridgeOptions(t))
	serve(t, "", 9000)
	setup(t, b, "first", Port{HostPort: 8081, ContainerPort: 80}, Port{Protocol: "tcp", HostPort: 8083, ContainerPort: 80, HostIP: "127.0.0.1"})
	for _, c := range []struct {
		name  string
		ports []Port
		is    func(error) bool
		says  string
	}{
		{"taken by a pod", []Port{{HostPort: 8081, ContainerPort: 81}}, errdefs.IsAlreadyExists, "taken by pod first"},
		{"taken on all addresses", []Port{{HostPort: 8081, ContainerPort: 81, HostIP: "127.0.0.1"}}, errdefs.IsAlreadyExists, "taken by pod first"},
		{"taken on one address", []Port{{HostPort: 8083, ContainerPort: 81}}, errdefs.IsAlreadyExists, "taken by pod first"},
		{"taken by a process", []Port{{HostPort: 9000, ContainerPort: 80}}, errdefs.IsAlreadyExists, "process of this host"},
		{"taken by a process, UDP", []Port{{Protocol: "udp", HostPort: 9000, ContainerPort: 80}}, errdefs.IsAlreadyExists, "process of this host"},
		{"twice", []Port{{HostPort: 8082, ContainerPort: 80}, {HostPort: 8082, ContainerPort: 81}}, errdefs.IsInvalidArgument, "twice"},
		{"port 0", []Port{{HostPort: 8082}}, errdefs.IsInvalidArgument, "1 to 65535"},
		{"host port 0", []Port{{ContainerPort: 8082}}, errdefs.IsInvalidArgument, "1 to 65535"},
		{"protocol", []Port{{Protocol: "icmp", HostPort: 8082, ContainerPort: 80}}, errdefs.IsInvalidArgument, "icmp"},
		{"host IP", []Port{{HostPort: 8082, ContainerPort: 80, HostIP: "here"}}, errdefs.IsInvalidArgument, "here"},
		{"IPv6 loopback", []Port{{HostPort: 8082, ContainerPort: 80, HostIP: "::1"}}, errdefs.IsInvalidArgument, "127.0.0.1"},
		{"foreign host IP", []Port{{HostPort: 8082, ContainerPort: 80, HostIP: "198.51.100.1"}}, errdefs.IsInvalidArgument, "no such address"},
	} {
		pod := Pod{ID: "second", NetNS: newNetNS(t, "second"+fmt.Sprint(len(c.name))), Ports: c.ports}
		_, err := b.Setup(t.Context(), pod)
		if !c.is(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, there := b.ledger.Pods["second"]; there {
			t.Fatalf("%s: the refused pod has addresses", c.name)
		}
	}
	// The other protocol, and another address, are free.
	setup(t, b, "udp", Port{Protocol: "udp", HostPort: 8081, ContainerPort: 80})
	setup(t, b, "sctp", Port{Protocol: "sctp", HostPort: 8081, ContainerPort: 80})
	setup(t, b, "address", Port{HostPort: 8083, ContainerPort: 80, HostIP: b.gateways()[0].Addr().String()})
}

func TestBridgeSurvivesRestart(t *testing.T) {
	opts := bridgeOptions(t)
	b, err := NewBridge(opts)
	must(t, err)
	pod, result := setup(t, b, "kept", Port{HostPort: 8084, ContainerPort: 80})
	gone, _ := setup(t, b, "gone")
	serve(t, pod.NetNS, 80)
	if _, err := NewBridge(opts); !errdefs.IsUnavailable(err) {
		t.Fatalf("a second bridge on the same ledger: %v", err)
	}
	must(t, b.Close())
	b = newBridge(t, opts)
	_, next := setup(t, b, "next")
	if next.IPs[0] == result.IPs[0] || next.IPs[1] == result.IPs[1] {
		t.Fatalf("address %s was given twice", next.IPs[0])
	}
	must(t, b.Reconcile(t.Context(), map[string]bool{"kept": true, "next": true}))
	if err := b.Check(t.Context(), gone); !errdefs.IsNotFound(err) {
		t.Errorf("check of a reconciled pod: %v", err)
	}
	if _, err := ask("", "tcp", "127.0.0.1:8084"); err != nil {
		t.Errorf("host port after a restart: %v", err)
	}
	must(t, b.rules.Remove()) // as nft flush ruleset does
	must(t, b.Status())
	if _, err := ask("", "tcp", "127.0.0.1:8084"); err != nil {
		t.Errorf("host port after the rules were flushed: %v", err)
	}
	must(t, b.Close())
	opts.IPv4 = netip.MustParsePrefix("10.255.0.0/24")
	if _, err := NewBridge(opts); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another prefix while pods exist: %v", err)
	}
}

func TestBridgeLeavesNothing(t *testing.T) {
	opts := bridgeOptions(t)
	opts.IPv4 = netip.PrefixFrom(opts.IPv4.Addr(), 29) // five pods: addresses must come back
	b, err := NewBridge(opts)
	must(t, err)
	before := names(t)
	for i := range 100 {
		pod := Pod{ID: fmt.Sprint("pod", i), NetNS: newNetNS(t, "pod"), Ports: []Port{{HostPort: 8085, ContainerPort: 80}}}
		_, err := b.Setup(t.Context(), pod)
		must(t, err)
		if i%2 == 0 {
			must(t, netns.Remove(pod.NetNS)) // as after a crash
		}
		must(t, b.Teardown(t.Context(), pod))
		must(t, b.Teardown(t.Context(), pod))
		must(t, netns.Remove(pod.NetNS))
	}
	if len(b.ledger.Pods) != 0 {
		t.Errorf("addresses of %d pods are still taken", len(b.ledger.Pods))
	}
	for i := range 5 {
		setup(t, b, fmt.Sprint("full", i))
	}
	full := Pod{ID: "full", NetNS: newNetNS(t, "full")}
	if _, err := b.Setup(t.Context(), full); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a sixth pod in a /29: %v", err)
	}
	must(t, b.Wipe(t.Context()))
	if after := names(t); after != before {
		t.Errorf("interfaces are %s, were %s", after, before)
	}
	if there, err := b.rules.Exists(); err != nil || there {
		t.Errorf("the nftables table is there: %v, %v", there, err)
	}
	if left, _ := os.ReadDir(opts.StateDir); len(left) != 1 {
		t.Errorf("left in the state directory: %v", left)
	}
}

// names lists the interfaces of the test's namespace.
func names(t *testing.T) string {
	t.Helper()
	links, err := rtnl.Dump(netlink.LinkList)
	must(t, err)
	var out []string
	for _, l := range links {
		out = append(out, l.Attrs().Name)
	}
	return strings.Join(out, " ")
}

func TestBridgeConcurrently(t *testing.T) {
	b := newBridge(t, bridgeOptions(t))
	before := names(t)
	var group errgroup.Group
	for i := range 16 {
		pod := Pod{ID: fmt.Sprint("pod", i), NetNS: newNetNS(t, fmt.Sprint("pod", i)), Ports: []Port{{HostPort: uint16(8100 + i), ContainerPort: 80}}}
		group.Go(func() error {
			for range 5 {
				if _, err := b.Setup(t.Context(), pod); err != nil {
					return err
				}
				if err := b.Check(t.Context(), pod); err != nil {
					return err
				}
				if err := b.Teardown(t.Context(), pod); err != nil {
					return err
				}
			}
			return nil
		})
	}
	must(t, group.Wait())
	if after := strings.TrimSuffix(names(t), " "+b.opts.Name); after != before || len(b.ledger.Pods) != 0 {
		t.Errorf("interfaces are %s, were %s; %d pods have addresses", after, before, len(b.ledger.Pods))
	}
}

func TestBridgeSetupFailsHalfway(t *testing.T) {
	b := newBridge(t, bridgeOptions(t))
	setup(t, b, "makes-the-bridge")
	before := names(t)
	pod := Pod{ID: "pod", NetNS: newNetNS(t, "pod"), Ports: []Port{{HostPort: 8086, ContainerPort: 80}}}
	// Something has eth0 already: the link cannot be made.
	must(t, netns.Do(pod.NetNS, func() error {
		return netlink.LinkAdd(strange("eth0"))
	}))
	if _, err := b.Setup(t.Context(), pod); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("set-up of a pod that has eth0: %v", err)
	}
	if after := names(t); after != before || len(b.ledger.Pods) != 1 {
		t.Errorf("interfaces are %s, were %s; %d pods have addresses", after, before, len(b.ledger.Pods))
	}
	must(t, netns.Do(pod.NetNS, func() error {
		return disconnect("eth0")
	}))
	if _, err := b.Setup(t.Context(), pod); err != nil {
		t.Errorf("the same pod again: %v", err)
	}
	if _, err := b.Setup(t.Context(), pod); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the same pod twice: %v", err)
	}
	pod.ID, pod.NetNS, pod.Ports = "gone", pod.NetNS+"gone", nil
	if _, err := b.Setup(t.Context(), pod); !errdefs.IsNotFound(err) {
		t.Errorf("a pod without a namespace: %v", err)
	}
}

// TestBridgeNetworkInUse: a network that the host reaches elsewhere is refused, a wider route is no obstacle.
func TestBridgeNetworkInUse(t *testing.T) {
	opts := bridgeOptions(t)
	must(t, netlink.LinkAdd(strange("other0")))
	other, err := netlink.LinkByName("other0")
	must(t, err)
	must(t, netlink.LinkSetUp(other))
	wide := netip.PrefixFrom(opts.IPv4.Addr(), 9).Masked()
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: other.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(wide)}))
	part := netip.PrefixFrom(nth(opts.IPv4, 9), 32)
	must(t, netlink.AddrAdd(other, address(part)))
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: other.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: ipNet(part)}))

	b := newBridge(t, opts)
	pod := Pod{ID: "pod", NetNS: newNetNS(t, "pod")}
	if _, err := b.Setup(t.Context(), pod); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "other0") {
		t.Fatalf("a network that is in use: %v", err)
	}
	must(t, netlink.LinkDel(other))
	if _, err := b.Setup(t.Context(), pod); err != nil {
		t.Errorf("once it is free: %v", err)
	}
}

// TestBridgeOfAnotherDaemon: a daemon with other directories, as in another mount namespace, neither uses nor removes a
// bridge that happens to have the name of its own.
func TestBridgeOfAnotherDaemon(t *testing.T) {
	opts := bridgeOptions(t)
	opts.IPv6 = netip.Prefix{}
	early := opts // opened before there is a bridge
	early.StateDir = t.TempDir()
	second, err := NewBridge(early)
	must(t, err)
	defer second.Close()
	b := newBridge(t, opts)
	pod, _ := setup(t, b, "pod")

	refused := func(what string, err error) {
		t.Helper()
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), opts.StateDir) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("status", second.Status())
	refused("reconcile", second.Reconcile(t.Context(), nil))
	refused("wipe", second.Wipe(t.Context()))
	_, err = second.Setup(t.Context(), Pod{ID: "other", NetNS: newNetNS(t, "other")})
	refused("setup", err)
	late := opts
	late.StateDir = t.TempDir()
	_, err = NewBridge(late)
	refused("open", err)
	if err := b.Check(t.Context(), pod); err != nil {
		t.Errorf("the pod of the first daemon: %v", err)
	}
	// The first one's successor has its directory, and takes over.
	must(t, b.Close())
	b = newBridge(t, opts)
	if err := b.Check(t.Context(), pod); err != nil {
		t.Errorf("the pod after a restart: %v", err)
	}
	must(t, b.Wipe(t.Context()))
	must(t, second.Status())
}

// strange is an interface that somebody else made.
func strange(name string) netlink.Link {
	return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, TxQLen: -1}, PeerName: name + "peer", PeerTxQLen: -1}
}

func TestBridgeOptions(t *testing.T) {
	good := bridgeOptions(t)
	for name, change := range map[string]func(*BridgeOptions){
		"no name":      func(o *BridgeOptions) { o.Name = "" },
		"long name":    func(o *BridgeOptions) { o.Name = "0123456789abcdef" },
		"path":         func(o *BridgeOptions) { o.Name = "a/b" },
		"no prefix":    func(o *BridgeOptions) { o.IPv4, o.IPv6 = netip.Prefix{}, netip.Prefix{} },
		"small prefix": func(o *BridgeOptions) { o.IPv4 = netip.MustParsePrefix("10.0.0.0/30") },
		"wrong family": func(o *BridgeOptions) { o.IPv4 = o.IPv6 },
		"no directory": func(o *BridgeOptions) { o.StateDir = "" },
		"MTU":          func(o *BridgeOptions) { o.MTU = 500 },
	} {
		opts := good
		change(&opts)
		if _, err := NewBridge(opts); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	opts := good
	opts.Name = "ptstdummy"
	must(t, netlink.LinkAdd(strange(opts.Name)))
	b := newBridge(t, opts)
	if _, err := b.Setup(t.Context(), Pod{ID: "pod", NetNS: newNetNS(t, "pod")}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an interface of the bridge's name that is no bridge: %v", err)
	}
}
