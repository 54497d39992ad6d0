package tap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// findNetfilter looks for rules of nftables, which iptables-nft makes too, and of the older iptables.
func (p *pod) findNetfilter(*netlink.Handle) error {
	if err := p.findNFTables(); err != nil {
		return err
	}
	for _, f := range []struct {
		tool, file       string
		domain, protocol int
	}{
		{"iptables", "/proc/thread-self/net/ip_tables_names", unix.AF_INET, unix.IPPROTO_IP},
		{"ip6tables", "/proc/thread-self/net/ip6_tables_names", unix.AF_INET6, unix.IPPROTO_IPV6},
	} {
		names, err := os.ReadFile(f.file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("list %s tables: %w", f.tool, err)
		}
		for _, table := range strings.Fields(string(names)) {
			rules, err := legacyRules(f.domain, f.protocol, table)
			if err != nil {
				return fmt.Errorf("count the rules of the %s table %s: %w", f.tool, table, err)
			}
			if rules > 0 {
				p.problem("%s rules in table %s (%d)", f.tool, table, rules)
			}
		}
	}
	return nil
}

// nfMessage is one object of an nftables dump.
type nfMessage struct {
	family byte
	attrs  map[uint16][]byte
}

func (m nfMessage) text(attr uint16) string { return strings.TrimRight(string(m.attrs[attr]), "\x00") }

// familyNames are those of the nft command.
var familyNames = map[byte]string{
	unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_ARP: "arp",
	unix.NFPROTO_NETDEV: "netdev", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_IPV6: "ip6",
}

// nfDrop is NF_DROP of linux/netfilter.h.
const nfDrop = 0

// findNFTables finds chains with rules, and chains at a hook that drop what no rule accepts.
func (p *pod) findNFTables() error {
	rules, err := dumpNFTables(unix.NFT_MSG_GETRULE)
	if err != nil {
		return fmt.Errorf("list nftables rules: %w", err)
	}
	seen := map[string]bool{}
	for _, rule := range rules {
		chain := fmt.Sprintf("%s %s, chain %s", familyNames[rule.family], rule.text(unix.NFTA_RULE_TABLE), rule.text(unix.NFTA_RULE_CHAIN))
		if !seen[chain] {
			seen[chain] = true
			p.problem("nftables rules in table %s", chain)
		}
	}
	chains, err := dumpNFTables(unix.NFT_MSG_GETCHAIN)
	if err != nil {
		return fmt.Errorf("list nftables chains: %w", err)
	}
	for _, chain := range chains {
		policy := chain.attrs[unix.NFTA_CHAIN_POLICY]
		if len(policy) == 4 && binary.BigEndian.Uint32(policy) == nfDrop {
			p.problem("nftables policy drop in table %s %s, chain %s", familyNames[chain.family], chain.text(unix.NFTA_CHAIN_TABLE), chain.text(unix.NFTA_CHAIN_NAME))
		}
	}
	return nil
}

// dumpNFTables lists objects of all families. A kernel without nftables has none.
func dumpNFTables(kind int) ([]nfMessage, error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
	replies, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	messages := make([]nfMessage, 0, len(replies))
	for _, reply := range replies {
		m, err := parseNFMessage(reply)
		if err != nil {
			return nil, err
		}
		messages = append(messages, m)
	}
	return messages, nil
}

// parseNFMessage decodes the part of a netlink message after its header.
func parseNFMessage(data []byte) (nfMessage, error) {
	if len(data) < nl.SizeofNfgenmsg {
		return nfMessage{}, fmt.Errorf("a message of %d bytes is too short", len(data))
	}
	m := nfMessage{family: data[0], attrs: map[uint16][]byte{}}
	for rest := data[nl.SizeofNfgenmsg:]; len(rest) >= unix.SizeofNlAttr; {
		size := int(binary.NativeEndian.Uint16(rest))
		if size < unix.SizeofNlAttr || size > len(rest) {
			return m, fmt.Errorf("an attribute of %d bytes in %d", size, len(rest))
		}
		kind := binary.NativeEndian.Uint16(rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		m.attrs[kind] = rest[unix.SizeofNlAttr:size]
		rest = rest[min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(rest)):]
	}
	return m, nil
}

// legacyInfo is struct ipt_getinfo, the same for IPv4 and IPv6, of linux/netfilter_ipv4/ip_tables.h; getInfo is
// IPT_SO_GET_INFO there.
type legacyInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	entries    uint32
	size       uint32
}

const getInfo = 64

// legacyRules counts the rules of a table of the older iptables. A table without rules has an entry for the policy of
// each of its hooks and one for its end.
func legacyRules(domain, protocol int, table string) (int, error) {
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var info legacyInfo
	copy(info.name[:len(info.name)-1], table)
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(protocol), getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno == unix.ENOENT {
		return 0, nil
	}
	if errno != 0 {
		return 0, errno
	}
	return int(info.entries) - bits.OnesCount32(info.validHooks) - 1, nil
}

// findTransforms looks for IPsec policies.
func (p *pod) findTransforms(*netlink.Handle) error {
	policies, err := netlink.XfrmPolicyList(netlink.FAMILY_ALL)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list IPsec policies: %w", err)
	}
	if len(policies) > 0 {
		p.problem("IPsec policies (%d)", len(policies))
	}
	return nil
}
