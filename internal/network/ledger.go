package network

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// ledgerVersion is that of the file's form.
const ledgerVersion = 1

// maxPods bounds how many addresses of a prefix are used at all: a /64 need not be walked.
const maxPods = 1 << 20

// ledger says which pod has which addresses and host ports on a bridge. What a pod gets is saved before it takes effect.
// It is not safe for concurrent use: the Bridge's lock guards it.
type ledger struct {
	path string
	ledgerFile
}

// ledgerFile is what lies on disk.
type ledgerFile struct {
	Version int `json:"version"`
	// Boot is the boot that the file is of: neither namespaces nor interfaces outlive it, so its entries do not.
	Boot string              `json:"boot"`
	IPv4 netip.Prefix        `json:"ipv4"`
	IPv6 netip.Prefix        `json:"ipv6"`
	Last uint32              `json:"last"`
	Pods map[string]ledgered `json:"pods"`
}

// ledgered is one pod. Its addresses are the Index-th of each prefix.
type ledgered struct {
	Index uint32     `json:"index"`
	IPv4  netip.Addr `json:"ipv4"`
	IPv6  netip.Addr `json:"ipv6"`
	Ports []hostPort `json:"ports,omitempty"`
}

func (l ledgered) ips() []netip.Addr {
	var ips []netip.Addr
	for _, ip := range []netip.Addr{l.IPv4, l.IPv6} {
		if ip.IsValid() {
			ips = append(ips, ip)
		}
	}
	return ips
}

// openLedger reads the file at path, or starts a new one when it is not there or is of an earlier boot. Where pods
// have addresses of other prefixes than those given it fails with ErrFailedPrecondition.
func openLedger(path, boot string, v4, v6 netip.Prefix) (*ledger, error) {
	fresh := ledgerFile{Version: ledgerVersion, Boot: boot, IPv4: v4, IPv6: v6, Pods: map[string]ledgered{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return &ledger{path, fresh}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read address ledger: %w", err)
	}
	file, err := decodeLedger(data)
	if err != nil {
		return nil, fmt.Errorf("read address ledger: %s: %w", path, err)
	}
	if file.Boot != boot || len(file.Pods) == 0 {
		if file.IPv4 == v4 && file.IPv6 == v6 {
			fresh.Last = file.Last
		}
		return &ledger{path, fresh}, nil
	}
	if file.IPv4 != v4 || file.IPv6 != v6 {
		return nil, fmt.Errorf("read address ledger: %d pods have addresses of %s and %s, and the prefixes are %s and %s now: remove the pods first or go back to the old prefixes: %w",
			len(file.Pods), file.IPv4, file.IPv6, v4, v6, errdefs.ErrFailedPrecondition)
	}
	return &ledger{path, file}, nil
}

// decodeLedger accepts only what save could have written.
func decodeLedger(data []byte) (ledgerFile, error) {
	var f ledgerFile
	if err := json.Unmarshal(data, &f); err != nil {
		return f, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	if f.Version != ledgerVersion {
		return f, fmt.Errorf("form %d is not known, only %d: %w", f.Version, ledgerVersion, errdefs.ErrFailedPrecondition)
	}
	if err := checkPrefixes(f.IPv4, f.IPv6); err != nil {
		return f, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	taken := make(map[uint32]string, len(f.Pods))
	for id, p := range f.Pods {
		if other, double := taken[p.Index]; double {
			return f, fmt.Errorf("pods %s and %s have the same address: %w", id, other, errdefs.ErrDataLoss)
		}
		taken[p.Index] = id
		if p.Index < 2 || p.Index > lastIndex(f.IPv4, f.IPv6) || p.IPv4 != nth(f.IPv4, p.Index) || p.IPv6 != nth(f.IPv6, p.Index) {
			return f, fmt.Errorf("pod %s has an address outside of the prefixes: %w", id, errdefs.ErrDataLoss)
		}
	}
	if f.Pods == nil {
		f.Pods = map[string]ledgered{}
	}
	return f, nil
}

// reserve gives the pod id the next free addresses, and its ports. Addresses that have become free are used again as
// late as possible: peers may remember them.
func (l *ledger) reserve(id string, ports []hostPort) (ledgered, error) {
	if _, there := l.Pods[id]; there {
		return ledgered{}, fmt.Errorf("pod %s has addresses on the bridge already: %w", id, errdefs.ErrAlreadyExists)
	}
	used := make(map[uint32]bool, len(l.Pods))
	for other, p := range l.Pods {
		used[p.Index] = true
		for _, q := range p.Ports {
			for _, port := range ports {
				if port.overlaps(q) {
					return ledgered{}, fmt.Errorf("host port %s is taken by pod %s: %w", port, other, errdefs.ErrAlreadyExists)
				}
			}
		}
	}
	index, ok := l.next(used)
	if !ok {
		return ledgered{}, fmt.Errorf("all %d addresses of %s are taken (remove pods or configure a larger prefix): %w",
			len(used), strings.Join(prefixNames(l.IPv4, l.IPv6), " and "), errdefs.ErrResourceExhausted)
	}
	entry := ledgered{Index: index, IPv4: nth(l.IPv4, index), IPv6: nth(l.IPv6, index), Ports: ports}
	before := l.Last
	l.Pods[id], l.Last = entry, index
	if err := l.save(); err != nil {
		delete(l.Pods, id)
		l.Last = before
		return ledgered{}, err
	}
	return entry, nil
}

func (l *ledger) next(used map[uint32]bool) (uint32, bool) {
	last := lastIndex(l.IPv4, l.IPv6)
	for i, tried := l.Last+1, uint32(2); tried <= last; i, tried = i+1, tried+1 {
		if i < 2 || i > last {
			i = 2
		}
		if !used[i] {
			return i, true
		}
	}
	return 0, false
}

// closePorts forgets the ports of a pod, so that the rest of a teardown can be tried again without them. The error says
// that the file is older; see release.
func (l *ledger) closePorts(id string) error {
	entry := l.Pods[id]
	entry.Ports = nil
	l.Pods[id] = entry
	return l.save()
}

// release frees what a pod has. The error says that this could not be saved, as on a full disk, and holds nobody up: what
// the older file names is torn down once more after a restart, and nobody gets it before a newer one was saved.
func (l *ledger) release(id string) error {
	if _, there := l.Pods[id]; !there {
		return nil
	}
	delete(l.Pods, id)
	return l.save()
}

// save replaces the file atomically. It does not wait for the disk: what a crash of the machine loses is of an earlier
// boot afterwards and would not be used.
func (l *ledger) save() error {
	data, err := json.Marshal(l.ledgerFile)
	if err != nil {
		return fmt.Errorf("save address ledger: %w", err)
	}
	tmp := l.path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("save address ledger: %w", err)
	}
	if err := os.Rename(tmp, l.path); err != nil {
		return fmt.Errorf("save address ledger: %w", err)
	}
	return nil
}

// checkPrefixes says whether pods can have addresses of v4 and v6, one of which may be the zero Prefix.
func checkPrefixes(v4, v6 netip.Prefix) error {
	if !v4.IsValid() && !v6.IsValid() {
		return fmt.Errorf("no address prefix is given: %w", errdefs.ErrInvalidArgument)
	}
	if v4.IsValid() && (!v4.Addr().Is4() || v4.Bits() < 8 || v4.Bits() > 29) {
		return fmt.Errorf("%s is not an IPv4 prefix of 8 to 29 bits: %w", v4, errdefs.ErrInvalidArgument)
	}
	if v6.IsValid() && (!v6.Addr().Is6() || v6.Addr().Is4In6() || v6.Bits() < 8 || v6.Bits() > 125) {
		return fmt.Errorf("%s is not an IPv6 prefix of 8 to 125 bits: %w", v6, errdefs.ErrInvalidArgument)
	}
	if v4 != v4.Masked() || v6 != v6.Masked() {
		return fmt.Errorf("%s has bits set beyond its length: %w", strings.Join(prefixNames(v4, v6), " or "), errdefs.ErrInvalidArgument)
	}
	return nil
}

// lastIndex is the highest index that names a usable address in both prefixes. Index 0 is the network, 1 the gateway,
// and the highest of an IPv4 prefix its broadcast address.
func lastIndex(v4, v6 netip.Prefix) uint32 {
	last := uint32(maxPods)
	if v4.IsValid() {
		last = min(last, 1<<min(32-v4.Bits(), 20)-2)
	}
	if v6.IsValid() {
		last = min(last, 1<<min(128-v6.Bits(), 20)-1)
	}
	return last
}

// nth is the n-th address of p, which must have room for it; the zero Addr for the zero Prefix.
func nth(p netip.Prefix, n uint32) netip.Addr {
	if !p.IsValid() {
		return netip.Addr{}
	}
	raw := p.Masked().Addr().AsSlice()
	tail := raw[len(raw)-4:]
	binary.BigEndian.PutUint32(tail, binary.BigEndian.Uint32(tail)|n)
	ip, _ := netip.AddrFromSlice(raw)
	return ip
}

func prefixNames(prefixes ...netip.Prefix) []string {
	var names []string
	for _, p := range prefixes {
		if p.IsValid() {
			names = append(names, p.String())
		}
	}
	return names
}

// bootID names this boot of the machine.
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// ledgerPath is where a bridge's ledger is.
func ledgerPath(stateDir, bridge string) string { return filepath.Join(stateDir, bridge+".json") }
