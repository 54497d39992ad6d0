package firewall

import (
	"crypto/sha256"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The kernel's calls to read a table of the old iptables (linux/netfilter_ipv4/ip_tables.h), the same for IPv6.
const (
	getInfo, getEntries = 64, 65

	infoSize      = 84
	infoBytes     = 80 // size of all entries
	entriesAt     = 40 // after the name and the size
	tableNameSize = 32
	counterSize   = 16
	maxTable      = 16 << 20 // more is not read: the tool is asked
)

// layout is where an entry of a table has what is needed of it.
type layout struct {
	domain, protocol int
	next, counters   int // offset of the entry's length, and of its counters
}

func layouts() (ipv4, ipv6 layout) {
	return layout{unix.AF_INET, unix.IPPROTO_IP, 90, 96}, layout{unix.AF_INET6, unix.IPPROTO_IPV6, 142, 152}
}

// digest is of all rules of the filter table, whatever they have counted; false where they cannot be read.
func (l layout) digest() (sum [sha256.Size]byte, ok bool) {
	fd, err := unix.Socket(l.domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return sum, false
	}
	defer unix.Close(fd)
	info := make([]byte, infoSize)
	copy(info, forwardTable)
	if !l.get(fd, getInfo, info) {
		return sum, false
	}
	size := binary.NativeEndian.Uint32(info[infoBytes:])
	if size == 0 || size > maxTable {
		return sum, false
	}
	table := make([]byte, entriesAt+size)
	copy(table, forwardTable)
	binary.NativeEndian.PutUint32(table[tableNameSize:], size)
	if !l.get(fd, getEntries, table) || !l.clearCounters(table[entriesAt:]) {
		return sum, false
	}
	return sha256.Sum256(table), true
}

// clearCounters tells whether entries are what they should be.
func (l layout) clearCounters(entries []byte) bool {
	for len(entries) > 0 {
		if len(entries) < l.counters+counterSize {
			return false
		}
		length := int(binary.NativeEndian.Uint16(entries[l.next:]))
		if length < l.counters+counterSize || length > len(entries) {
			return false
		}
		clear(entries[l.counters : l.counters+counterSize])
		entries = entries[length:]
	}
	return true
}

func (l layout) get(fd, option int, into []byte) bool {
	size := uint32(len(into))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(l.protocol), uintptr(option),
		uintptr(unsafe.Pointer(&into[0])), uintptr(unsafe.Pointer(&size)), 0)
	return errno == 0
}
