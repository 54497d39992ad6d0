package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/cleanup"
	"github.com/pistis-run/pistis/internal/filelock"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/network/firewall"
	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/rtnl"
)

// BridgeOptions configure a Bridge.
type BridgeOptions struct {
	// Name of the bridge device, at most 15 bytes. Everything that the bridge makes is named after it.
	Name string
	// IPv4 and IPv6 are the pods' prefixes; one of them may be the zero Prefix. The first address of each is the
	// bridge's own. IPv6 is left out where the kernel has none.
	IPv4, IPv6 netip.Prefix
	// StateDir is where the ledger of addresses lies. It must be on this machine and is made when it is missing.
	StateDir string
	// MTU in bytes; 0 takes that of the host's default route.
	MTU int
	// Log of what is changed on the host; nil is slog.Default().
	Log *slog.Logger
}

// Bridge is the network of pods without a CNI configuration. It makes nothing on the host before the first Setup.
type Bridge struct {
	opts    BridgeOptions
	mark    bridgeMark
	log     *slog.Logger
	rules   firewall.Ruleset
	forward firewall.OpenForwarding
	lock    *filelock.Lock

	// mu guards the ledger and orders what is made on the host for all pods together.
	mu     sync.Mutex
	ledger *ledger
	// made is true once the ruleset is this process's: one of an older version is replaced.
	made bool
	dns  podDNS
}

// NewBridge opens the bridge's ledger. It fails with ErrInvalidArgument for bad options, with ErrUnavailable while
// another process has the ledger open, and with ErrFailedPrecondition where a bridge of that name is another daemon's. The
// caller must Close the bridge.
func NewBridge(opts BridgeOptions) (_ *Bridge, err error) {
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("bridge network: %w", err)
	}
	log := opts.Log
	if log == nil {
		log = slog.Default()
	}
	if opts.IPv6.IsValid() && !hasIPv6() {
		log.Warn("bridge network: pods get IPv4 addresses only", logfields.Reason, "this kernel has no IPv6")
		opts.IPv6 = netip.Prefix{}
	}
	if err := checkPrefixes(opts.IPv4, opts.IPv6); err != nil {
		return nil, fmt.Errorf("bridge network: %w", err)
	}
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("bridge network: %w", err)
	}
	mark, err := markOf(opts.StateDir)
	if err == nil {
		err = mark.checkName(opts.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("bridge network: %w", err)
	}
	b := &Bridge{
		opts: opts, mark: mark, log: log,
		rules:   firewall.Ruleset{Bridge: opts.Name, V4: opts.IPv4, V6: opts.IPv6},
		forward: firewall.OpenForwarding{Bridge: opts.Name, Log: log},
	}
	if b.lock, err = filelock.TakeOver(filepath.Join(opts.StateDir, opts.Name+".lock")); err != nil { // keeps a second process from the same ledger
		return nil, fmt.Errorf("bridge network: %w", err)
	}
	if err := b.openLedger(); err != nil {
		b.lock.Close()
		return nil, fmt.Errorf("bridge network: %w", err)
	}
	return b, nil
}

func (o *BridgeOptions) check() error {
	if o.Name == "" || len(o.Name) >= unix.IFNAMSIZ || o.Name == "." || o.Name == ".." || strings.ContainsAny(o.Name, "/: \t\n%") {
		return fmt.Errorf("bridge name %q: not a name of an interface (1 to 15 bytes without spaces, slashes, colons and percent signs): %w", o.Name, errdefs.ErrInvalidArgument)
	}
	if o.StateDir == "" {
		return fmt.Errorf("no state directory is given: %w", errdefs.ErrInvalidArgument)
	}
	if o.MTU != 0 && (o.MTU < 1280 || o.MTU > 65535) {
		return fmt.Errorf("MTU %d: not 1280 to 65535 bytes: %w", o.MTU, errdefs.ErrInvalidArgument)
	}
	o.IPv4, o.IPv6 = o.IPv4.Masked(), o.IPv6.Masked()
	return nil
}

// openLedger starts a new ledger in place of an unreadable one only where no pod can be left that the old one named.
func (b *Bridge) openLedger() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	path := ledgerPath(b.opts.StateDir, b.opts.Name)
	b.ledger, err = openLedger(path, boot, b.opts.IPv4, b.opts.IPv6)
	if !errdefs.IsDataLoss(err) {
		return err
	}
	link, linkErr := findLink(b.opts.Name)
	if linkErr != nil || link != nil {
		return fmt.Errorf("%w (while no pod runs, remove the file and the interface %s)", errors.Join(err, linkErr), b.opts.Name)
	}
	b.log.Warn("bridge network: starting a new address ledger, no pod is left of the old one", logfields.Path, path, logfields.Error, err)
	if err := os.Rename(path, path+".bad"); err != nil {
		return err
	}
	b.ledger, err = openLedger(path, boot, b.opts.IPv4, b.opts.IPv6)
	return err
}

// gateways are the bridge's own addresses.
func (b *Bridge) gateways() []netip.Prefix { return b.prefixes(1) }

// prefixes are the n-th addresses with the lengths of their prefixes, IPv4 first.
func (b *Bridge) prefixes(n uint32) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []netip.Prefix{b.opts.IPv4, b.opts.IPv6} {
		if p.IsValid() {
			out = append(out, netip.PrefixFrom(nth(p, n), p.Bits()))
		}
	}
	return out
}

// Setup implements Network.
func (b *Bridge) Setup(ctx context.Context, pod Pod) (_ Result, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("set up bridge network: pod %s: %w", pod.ID, err)
		}
	}()
	ports, err := b.checkPod(pod)
	if err != nil {
		return Result{}, err
	}
	ns, err := netns.Open(pod.NetNS)
	if err != nil {
		return Result{}, err
	}
	defer ns.Close()
	link, entry, dns, err := b.reserve(pod.ID, ports)
	if err != nil {
		return Result{}, err
	}
	var undo cleanup.Stack
	defer undo.Unwind(ctx, &err)
	undo.Add("tear down", func(ctx context.Context) error { return b.Teardown(ctx, pod) })
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	if err := link.connect(ns); err != nil {
		return Result{}, err
	}
	if len(ports) > 0 {
		if err := b.openPorts(entry); err != nil {
			return Result{}, err
		}
	}
	result := Result{IPs: entry.ips()}
	if dns.Own {
		for _, ip := range dns.Conf.Servers {
			result.DNSServers = append(result.DNSServers, ip.String())
		}
		result.DNSSearches, result.DNSOptions = dns.Conf.Searches, dns.Conf.Options
	}
	return result, nil
}

// checkPod validates what can be said without the host's state, and that no process listens on a host port.
func (b *Bridge) checkPod(pod Pod) ([]hostPort, error) {
	if pod.ID == "" {
		return nil, fmt.Errorf("no pod ID is given: %w", errdefs.ErrInvalidArgument)
	}
	for _, key := range []string{ingressBandwidth, egressBandwidth} {
		if value, asked := pod.Annotations[key]; asked {
			return nil, fmt.Errorf("annotation %s: %s: the built-in bridge has no bandwidth limits (configure CNI with the bandwidth plugin): %w", key, value, errdefs.ErrNotImplemented)
		}
	}
	ports, err := checkPorts(pod.Ports)
	if err != nil {
		return nil, err
	}
	for _, p := range ports {
		if p.HostIP.IsValid() && !b.prefixOfFamily(p.HostIP).IsValid() {
			return nil, fmt.Errorf("host port %s: pods of this bridge have no address of that family: %w", p, errdefs.ErrInvalidArgument)
		}
		if p.HostIP == nth(b.opts.IPv4, 1) && p.HostIP.IsValid() && p.HostPort == dnsPort {
			return nil, fmt.Errorf("host port %s is where pods of this bridge resolve names: %w", p, errdefs.ErrAlreadyExists)
		}
		if err := p.free(); err != nil {
			return nil, err
		}
	}
	return ports, nil
}

func (b *Bridge) prefixOfFamily(ip netip.Addr) netip.Prefix {
	if ip.Is4() {
		return b.opts.IPv4
	}
	return b.opts.IPv6
}

// reserve sees to it that the host is ready and gives the pod its addresses.
func (b *Bridge) reserve(id string, ports []hostPort) (podLink, ledgered, podDNS, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	bridge, err := b.ensure()
	if err != nil {
		return podLink{}, ledgered{}, podDNS{}, err
	}
	entry, err := b.ledger.reserve(id, ports)
	if err != nil {
		return podLink{}, ledgered{}, podDNS{}, err
	}
	return podLink{
		host: vethName(b.opts.Name, entry.Index), bridge: bridge,
		addresses: b.prefixes(entry.Index), gateways: b.gateways(),
	}, entry, b.dns, nil
}

// ensure makes what all pods share, and puts back what somebody removed (as "nft flush ruleset" does). The caller
// holds mu.
func (b *Bridge) ensure() (netlink.Link, error) {
	if b.ledger == nil {
		return nil, errClosed
	}
	if err := switchForwarding(b.log, b.opts.IPv4.IsValid(), b.opts.IPv6.IsValid()); err != nil {
		return nil, err
	}
	bridge, err := ensureBridge(b.opts.Name, b.opts.MTU, b.gateways(), b.mark)
	if err != nil {
		return nil, err
	}
	var gateway netip.Addr
	if b.opts.IPv4.IsValid() {
		gateway = nth(b.opts.IPv4, 1)
	}
	dns, err := readPodDNS(hostResolvConf, resolvedConf, gateway)
	if err != nil {
		return nil, err
	}
	there, err := b.rules.Exists()
	if err != nil {
		return nil, err
	}
	if !there || !b.made || dns.Resolver != b.dns.Resolver {
		b.dns, b.made = dns, false
		if err := b.rules.Replace(b.forwards()); err != nil {
			return nil, err
		}
		b.made = true
	}
	b.dns = dns
	return bridge, b.forward.Ensure()
}

// forwards are the entries of the port maps for all pods of the ledger. The caller holds mu.
func (b *Bridge) forwards() []firewall.Forward {
	var out []firewall.Forward
	add := func(p hostPort, to netip.AddrPort) {
		number, _ := protocolNumber(p.Protocol) // of a port that was checked
		out = append(out, firewall.Forward{Protocol: number, HostIP: p.HostIP, HostPort: p.HostPort, To: to})
	}
	if b.dns.Resolver.IsValid() {
		for _, protocol := range []string{"udp", "tcp"} {
			add(hostPort{Protocol: protocol, HostIP: nth(b.opts.IPv4, 1), HostPort: dnsPort}, netip.AddrPortFrom(b.dns.Resolver, dnsPort))
		}
	}
	for _, pod := range b.ledger.Pods {
		for _, p := range pod.Ports {
			for _, ip := range pod.ips() {
				add(p, netip.AddrPortFrom(ip, p.ContainerPort))
			}
		}
	}
	return out
}

func (b *Bridge) openPorts(entry ledgered) error {
	b.mu.Lock()
	err := errClosed
	if b.ledger != nil {
		err = b.rules.SetForwards(b.forwards())
	}
	b.mu.Unlock()
	if err != nil {
		return err
	}
	return forgetFlows(entry.Ports)
}

// errClosed is the error of calls after Close.
var errClosed = fmt.Errorf("the bridge is closed: %w", errdefs.ErrUnavailable)

// entry is what the pod has.
func (b *Bridge) entry(id string) (_ ledgered, there bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil {
		return ledgered{}, false
	}
	entry, there := b.ledger.Pods[id]
	return entry, there
}

func (b *Bridge) has(id string) bool {
	_, there := b.entry(id)
	return there
}

// Teardown implements Network.
func (b *Bridge) Teardown(ctx context.Context, pod Pod) error {
	if err := b.teardown(pod.ID); err != nil {
		return fmt.Errorf("tear down bridge network: pod %s: %w", pod.ID, err)
	}
	return nil
}

// teardown frees the addresses last: until then nobody else gets them.
func (b *Bridge) teardown(id string) error {
	index, there, err := b.closePorts(id)
	if err != nil || !there {
		return err
	}
	if err := disconnect(vethName(b.opts.Name, index)); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil {
		return errClosed
	}
	b.saved(id, b.ledger.release(id))
	return nil
}

// saved tells that the ledger on disk is older than the one in memory.
func (b *Bridge) saved(id string, err error) {
	if err != nil {
		b.log.Warn("what a pod's network freed could not be saved; it is freed once more after a restart", logfields.Sandbox, id, logfields.Error, err)
	}
}

func (b *Bridge) closePorts(id string) (index uint32, there bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil {
		return 0, false, errClosed
	}
	entry, there := b.ledger.Pods[id]
	if !there || len(entry.Ports) == 0 {
		return entry.Index, there, nil
	}
	b.saved(id, b.ledger.closePorts(id))
	exists, err := b.rules.Exists()
	if err == nil && exists {
		err = b.rules.SetForwards(b.forwards())
	}
	return entry.Index, true, err
}

// Check implements Network.
func (b *Bridge) Check(ctx context.Context, pod Pod) error {
	entry, there := b.entry(pod.ID)
	if !there {
		return fmt.Errorf("check bridge network: pod %s: it has no addresses: %w", pod.ID, errdefs.ErrNotFound)
	}
	link, err := findLink(vethName(b.opts.Name, entry.Index))
	if err == nil && link == nil {
		err = fmt.Errorf("its interface is gone: %w", errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = netns.Do(pod.NetNS, func() error { return checkAddresses(entry.ips()) })
	}
	if err != nil {
		return fmt.Errorf("check bridge network: pod %s: %w", pod.ID, err)
	}
	return nil
}

// checkAddresses runs in the pod's namespace.
func checkAddresses(want []netip.Addr) error {
	link, err := netlink.LinkByName(interfaceName)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", interfaceName, err)
	}
	addrs, err := rtnl.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", interfaceName, err)
	}
	for _, ip := range want {
		if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return prefixOf(a.IPNet).Addr() == ip }) {
			return fmt.Errorf("address %s is missing on %s: %w", ip, interfaceName, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// Status implements Network. It also puts back what somebody removed from the host, once there are pods.
func (b *Bridge) Status() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil {
		return fmt.Errorf("bridge network: %w", errClosed)
	}
	if !b.made && len(b.ledger.Pods) == 0 { // the first pod makes it
		if err := b.mark.checkName(b.opts.Name); err != nil {
			return fmt.Errorf("bridge network: %w", err)
		}
		return nil
	}
	if _, err := b.ensure(); err != nil {
		return fmt.Errorf("bridge network: %w", err)
	}
	return nil
}

// Close gives the ledger up. Bridge, rules and pods stay as they are.
func (b *Bridge) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ledger == nil {
		return nil
	}
	b.ledger = nil
	return b.lock.Close()
}
