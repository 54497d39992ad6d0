// Package rtnl reads the kernel's network tables whole.
//
// A dump is sent in pieces; when the table changes between two of them the kernel marks the dump as interrupted, and
// what was read may lack entries or have some twice. That is no error of the reader's: the kernel asks it to read again
// (NLM_F_DUMP_INTR in linux/netlink.h). On a node where pods come and go this happens all day.
//
// It owns no state and imports nothing of ours.
package rtnl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// attempts bounds how often a table that never holds still is read. Each try is independent of the others, so that
// many failures in a row mean a broken kernel and not a busy host.
const attempts = 100

// Dump calls list until it returns a consistent view of the table, and returns that. Any other error than an interrupted
// dump is returned at once.
func Dump[T any](list func() ([]T, error)) ([]T, error) {
	for range attempts {
		entries, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return entries, err
		}
	}
	return nil, fmt.Errorf("%d times in a row: %w", attempts, netlink.ErrDumpInterrupted)
}
