package qemu

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor/vmm"
)

// setGuestCID is VHOST_VSOCK_SET_GUEST_CID.
const setGuestCID = 0x4008af60

// Context ids up to 2 are reserved, as is the last.
const minCID, maxCID = 3, 1<<32 - 2

var errNoVhost = errors.New("the host has no vhost-vsock")

// openVSOCK opens the host's half of a vsock device and finds a context id that is not taken. QEMU sets the
// id again, on the same descriptor, which the kernel allows.
func openVSOCK() (*os.File, uint32, error) {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if noDevice(err) {
		return nil, 0, errNoVhost
	}
	if err != nil {
		return nil, 0, fmt.Errorf("vhost-vsock: %w: %w", err, vmm.ErrorClass(err))
	}
	for range 64 {
		cid := uint64(minCID + rand.Uint32N(maxCID-minCID))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid)))
		switch errno {
		case 0:
			return f, uint32(cid), nil
		case unix.EADDRINUSE:
		default:
			f.Close()
			return nil, 0, fmt.Errorf("vhost-vsock: set context id: %w: %w", errno, vmm.ErrorClass(errno))
		}
	}
	f.Close()
	return nil, 0, fmt.Errorf("vhost-vsock: no free context id: %w", errdefs.ErrResourceExhausted)
}
