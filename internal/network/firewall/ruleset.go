package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The bridge's nftables table, as nft would print it for br0, 10.0.0.0/16 and fd00::/64:
//
//	table inet pistis_br0 {
//		map host4     { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//		map host4_any { type inet_proto . inet_service : ipv4_addr . inet_service }
//		chain guard {       # a pod speaks for itself only, and not to the host's loopback
//			type filter hook prerouting priority raw
//			iifname "br0" ip daddr 127.0.0.0/8 drop
//			iifname "br0" ip saddr != { 10.0.0.0/16, 0.0.0.0 } drop      # and for IPv6
//		}
//		chain prerouting  { type nat hook prerouting priority dstnat;  fib daddr type local jump ports }
//		chain output      { type nat hook output priority dstnat;      fib daddr type local jump ports }
//		chain ports {
//			ip6 daddr ::1 return    # the kernel lets no packet from ::1 leave the loopback: refuse at once
//			dnat ip to ip daddr . meta l4proto . th dport map @host4
//			dnat ip to meta l4proto . th dport map @host4_any            # and for IPv6
//		}
//		chain postrouting {
//			type nat hook postrouting priority srcnat
//			oifname "br0" ip saddr 10.0.0.0/16 ct status dnat masquerade       # a pod by way of a host port
//			oifname "br0" ip saddr 127.0.0.0/8 masquerade                      # the host by way of localhost
//			oifname != "br0" ip saddr 10.0.0.0/16 ip daddr != 10.0.0.0/16 masquerade
//		}
//	}

// Registers: 8 and up are the 32-bit registers, 1 to 4 the 128-bit ones over the same bytes (1 is 8 to 11).
const (
	reg32  = unix.NFT_REG32_00
	reg128 = unix.NFT_REG_1
)

// Ruleset is the table of one bridge, whose pods have addresses of V4 and V6; an invalid prefix is none.
type Ruleset struct {
	Bridge string
	V4, V6 netip.Prefix
}

// family holds what differs between IPv4 and IPv6 in rules.
type family struct {
	proto       byte // NFPROTO_*
	saddr       uint32
	daddr       uint32
	size        uint32 // of an address, in bytes
	prefix      netip.Prefix
	loopback    netip.Prefix
	unspecified []netip.Prefix // sources that are no address yet, or only of the link
	name        string
}

func (r Ruleset) families() []family {
	var fams []family
	if r.V4.IsValid() {
		fams = append(fams, family{
			proto: unix.NFPROTO_IPV4, saddr: 12, daddr: 16, size: 4, prefix: r.V4, name: "host4",
			loopback:    netip.MustParsePrefix("127.0.0.0/8"),
			unspecified: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/32")},
		})
	}
	if r.V6.IsValid() {
		fams = append(fams, family{
			proto: unix.NFPROTO_IPV6, saddr: 8, daddr: 24, size: 16, prefix: r.V6, name: "host6",
			loopback:    netip.MustParsePrefix("::1/128"),
			unspecified: []netip.Prefix{netip.MustParsePrefix("::/128"), netip.MustParsePrefix("fe80::/10")},
		})
	}
	return fams
}

func (r Ruleset) table() *nftables.Table {
	return &nftables.Table{Name: "pistis_" + r.Bridge, Family: nftables.TableFamilyINet}
}

// Exists says whether the table is there.
func (r Ruleset) Exists() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list nftables tables: %w", err)
	}
	name := r.table().Name
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }), nil
}

// Replace puts the whole table in place in one transaction, with nothing of an earlier one left.
func (r Ruleset) Replace(forwards []Forward) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := r.table()
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	ports := &nftables.Chain{Name: "ports", Table: table}
	conn.AddChain(ports)
	if err := r.addMaps(conn, table, forwards); err != nil {
		return err
	}
	for _, f := range r.families() {
		if f.proto == unix.NFPROTO_IPV6 {
			add(conn, ports, f.only(), f.addressIn(f.daddr, f.loopback, true), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
		}
		add(conn, ports, f.translate(true))
		add(conn, ports, f.translate(false))
	}
	r.addGuard(conn, table)
	for _, hook := range []struct {
		name string
		at   *nftables.ChainHook
	}{{"prerouting", nftables.ChainHookPrerouting}, {"output", nftables.ChainHookOutput}} {
		chain := conn.AddChain(&nftables.Chain{Name: hook.name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook.at, Priority: nftables.ChainPriorityNATDest})
		add(conn, chain, localDestination(), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name}})
	}
	r.addMasquerade(conn, table)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set nftables table %s: %w", table.Name, err)
	}
	return nil
}

// Remove deletes the table; one that has gone is no error.
func (r Ruleset) Remove() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	conn.AddTable(r.table())
	conn.DelTable(r.table())
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("remove nftables table %s: %w", r.table().Name, err)
	}
	return nil
}

// Forward is an entry of the port maps: what comes for a port of the host goes to To.
type Forward struct {
	Protocol byte       // IPPROTO_*
	HostIP   netip.Addr // the zero Addr: all of the host's
	HostPort uint16
	To       netip.AddrPort
}

// SetForwards replaces the content of the port maps in one transaction.
func (r Ruleset) SetForwards(forwards []Forward) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, m := range r.maps(r.table()) {
		conn.FlushSet(m.set)
		if err := m.addElements(conn, forwards); err != nil {
			return err
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("set host ports in nftables table %s: %w", r.table().Name, err)
	}
	return nil
}

// portMap is one of the table's maps: host ports on any address of the host, or on one.
type portMap struct {
	family
	set *nftables.Set
	any bool
}

func (r Ruleset) maps(table *nftables.Table) []portMap {
	var maps []portMap
	for _, f := range r.families() {
		addr := nftables.TypeIPAddr
		if f.size == 16 {
			addr = nftables.TypeIP6Addr
		}
		data := nftables.MustConcatSetType(addr, nftables.TypeInetService)
		// The library would number sets by a counter that it does not guard; numbers only matter within a transaction.
		maps = append(maps,
			portMap{f, &nftables.Set{
				Table: table, ID: uint32(len(maps) + 1), Name: f.name, IsMap: true, Concatenation: true,
				KeyType: nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService), DataType: data,
			}, false},
			portMap{f, &nftables.Set{
				Table: table, ID: uint32(len(maps) + 2), Name: f.name + "_any", IsMap: true, Concatenation: true,
				KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService), DataType: data,
			}, true})
	}
	return maps
}

func (r Ruleset) addMaps(conn *nftables.Conn, table *nftables.Table, forwards []Forward) error {
	for _, m := range r.maps(table) {
		if err := conn.AddSet(m.set, nil); err != nil {
			return fmt.Errorf("describe nftables map %s: %w", m.set.Name, err)
		}
		if err := m.addElements(conn, forwards); err != nil {
			return err
		}
	}
	return nil
}

// maxElements bounds a message: its length has 16 bits.
const maxElements = 256

func (m portMap) addElements(conn *nftables.Conn, forwards []Forward) error {
	var elements []nftables.SetElement
	for _, fw := range forwards {
		if fw.To.Addr().BitLen() != int(m.size)*8 || fw.HostIP.IsValid() == m.any {
			continue
		}
		var key []byte
		if !m.any {
			if fw.HostIP.BitLen() != int(m.size)*8 {
				continue
			}
			key = fw.HostIP.AsSlice()
		}
		key = append(key, fw.Protocol, 0, 0, 0)
		elements = append(elements, nftables.SetElement{
			Key: appendPort(key, fw.HostPort),
			Val: appendPort(fw.To.Addr().AsSlice(), fw.To.Port()),
		})
	}
	for chunk := range slices.Chunk(elements, maxElements) {
		if err := conn.SetAddElements(m.set, chunk); err != nil {
			return fmt.Errorf("describe nftables map %s: %w", m.set.Name, err)
		}
	}
	return nil
}

// appendPort appends the port as a register holds it: padded to 32 bits.
func appendPort(b []byte, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(b, port), 0, 0)
}

// translate is a rule that sends a host port where the map says: the map with or without the host's address.
func (f family) translate(withAddress bool) []expr.Any {
	rule := f.only()
	key, name := uint32(reg32), f.name+"_any"
	if withAddress {
		rule = append(rule, &expr.Payload{DestRegister: key, Base: expr.PayloadBaseNetworkHeader, Offset: f.daddr, Len: f.size})
		key, name = key+f.size/4, f.name
	}
	return append(rule,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: key},
		&expr.Payload{DestRegister: key + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg32, DestRegister: reg128, IsDestRegSet: true, SetName: name},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg128, RegProtoMin: reg32 + f.size/4},
	)
}

func (r Ruleset) addGuard(conn *nftables.Conn, table *nftables.Table) {
	chain := conn.AddChain(&nftables.Chain{Name: "guard", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	for _, f := range r.families() {
		fromPod := slices.Concat(interfaceIs(expr.MetaKeyIIFNAME, r.Bridge, true), f.only())
		add(conn, chain, fromPod, f.addressIn(f.daddr, f.loopback, true), drop)
		spoofed := slices.Concat(fromPod, f.addressIn(f.saddr, f.prefix, false))
		for _, p := range f.unspecified {
			spoofed = append(spoofed, f.addressIn(f.saddr, p, false)...)
		}
		add(conn, chain, spoofed, drop)
	}
}

func (r Ruleset) addMasquerade(conn *nftables.Conn, table *nftables.Table) {
	chain := conn.AddChain(&nftables.Chain{Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	masquerade := []expr.Any{&expr.Masq{}}
	toPod := interfaceIs(expr.MetaKeyOIFNAME, r.Bridge, true)
	away := interfaceIs(expr.MetaKeyOIFNAME, r.Bridge, false)
	for _, f := range r.families() {
		add(conn, chain, toPod, f.only(), f.addressIn(f.saddr, f.prefix, true), translated(), masquerade)
		add(conn, chain, toPod, f.only(), f.addressIn(f.saddr, f.loopback, true), masquerade)
		add(conn, chain, away, f.only(), f.addressIn(f.saddr, f.prefix, true), f.addressIn(f.daddr, f.prefix, false), masquerade)
	}
}

func add(conn *nftables.Conn, chain *nftables.Chain, parts ...[]expr.Any) {
	conn.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// only matches packets of the family: an inet chain sees both.
func (f family) only() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg128},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg128, Data: []byte{f.proto}},
	}
}

// addressIn matches the address at the offset of the network header against p.
func (f family) addressIn(offset uint32, p netip.Prefix, in bool) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	op := expr.CmpOpEq
	if !in {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Payload{DestRegister: reg128, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Bitwise{SourceRegister: reg128, DestRegister: reg128, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		&expr.Cmp{Op: op, Register: reg128, Data: p.Masked().Addr().AsSlice()},
	}
}

// interfaceIs matches the name of the interface that key stands for.
func interfaceIs(key expr.MetaKey, name string, is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg128},
		&expr.Cmp{Op: op, Register: reg128, Data: padded},
	}
}

// localDestination matches packets for an address of the host.
func localDestination() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg128, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg128, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
}

// statusDNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h.
const statusDNAT = 1 << 5

// translated matches packets of connections whose destination was translated.
func translated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: reg128},
		&expr.Bitwise{SourceRegister: reg128, DestRegister: reg128, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, statusDNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg128, Data: make([]byte, 4)},
	}
}
