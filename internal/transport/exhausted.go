package transport

import (
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// IsExhausted tells an Accept that failed for want of something that comes back, or because of one client alone, from
// a listener that is broken.
func IsExhausted(err error) bool {
	return slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED},
		func(e error) bool { return errors.Is(err, e) })
}
