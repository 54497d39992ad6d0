package confine

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FDDir is where a confined process finds its own descriptors.
const FDDir = "/fd"

// Confine confines this process: an empty root of its own, in which the shim will mount the shares, a handful of
// capabilities, and the system calls of a file server. It was started in a new mount namespace.
func Confine() error {
	unix.Umask(0) // the guest's kernel applies its processes' own
	if err := emptyRoot(); err != nil {
		return fmt.Errorf("make an empty root: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := restrictCalls(); err != nil {
		return fmt.Errorf("restrict system calls: %w", err)
	}
	return nil
}

// emptyRoot changes to a root that holds only a directory with this process's own descriptors. /proc is where it is
// mounted because that is there on every host.
func emptyRoot() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	own, err := unix.OpenTree(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/fd", os.Getpid()), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("clone the mount of /proc (Linux 5.12 is needed): %w", err)
	}
	defer unix.Close(own)
	const at = "/proc"
	if err := unix.Mount("shares", at, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=1m,nr_inodes=4096"); err != nil {
		return err
	}
	if err := os.Mkdir(at+FDDir, 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(own, "", unix.AT_FDCWD, at+FDDir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return err
	}
	// The old root lies over the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// capabilities are those of somebody who serves all users' files and nothing else.
const capabilities = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID | 1<<unix.CAP_SETFCAP

func dropCapabilities() error {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); errno != 0 {
		return errno
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if capabilities&(1<<c) != 0 {
			continue
		}
		_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0)
		if errno != 0 && errno != unix.EINVAL { // a kernel that does not know it has none
			return errno
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return err
	}
	for i := range have {
		have[i].Permitted &= uint32(uint64(capabilities) >> (32 * i))
		have[i].Effective, have[i].Inheritable = have[i].Permitted, 0
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&have[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}
