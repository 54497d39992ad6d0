package vmm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

var diskID = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// CheckDisks reports the first that no VMM could have.
func CheckDisks(all []hypervisor.Disk) error {
	seen := make(map[string]bool)
	for _, d := range all {
		if err := CheckDisk(d); err != nil {
			return fmt.Errorf("disk %q: %w", d.ID, err)
		}
		if seen[d.ID] {
			return fmt.Errorf("disk %q is there twice: %w", d.ID, errdefs.ErrInvalidArgument)
		}
		seen[d.ID] = true
	}
	return nil
}

// CheckDisk reports what is wrong with a disk's description.
func CheckDisk(d hypervisor.Disk) error {
	switch {
	case !diskID.MatchString(d.ID):
		return fmt.Errorf("an id has 1 to 64 letters, digits and '-': %w", errdefs.ErrInvalidArgument)
	case d.File == nil:
		return fmt.Errorf("no file: %w", errdefs.ErrInvalidArgument)
	case d.ReadOnly:
		return nil
	}
	raw, err := d.File.SyscallConn()
	if err != nil {
		return fmt.Errorf("image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	writable := false
	err = raw.Control(func(fd uintptr) {
		flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
		writable = err == nil && flags&unix.O_ACCMODE == unix.O_RDWR
	})
	if err != nil || !writable {
		return fmt.Errorf("image %s: a writable disk needs a file that is open for reading and writing: %w", d.File.Name(), errdefs.ErrInvalidArgument)
	}
	return nil
}

// GiveDisk makes a disk's image usable for a VMM that opens it by name: a writable file becomes its user's, and one that
// is shared must be readable for all. Devices need nothing: in a jail they are the user's.
func GiveDisk(d hypervisor.Disk, user *hypervisor.User) error {
	info, err := d.File.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("image: %w: %w", err, ErrorClass(err))
	case user == nil || !info.Mode().IsRegular():
		return nil
	case !d.ReadOnly:
		if err := d.File.Chown(int(user.UID), int(user.GID)); err != nil {
			return fmt.Errorf("image: %w: %w", err, ErrorClass(err))
		}
		return nil
	}
	ok, err := Readable(d.File, *user)
	if err == nil && !ok {
		err = fmt.Errorf("it cannot be read by user %d, whom the VMM runs as; make it readable with chmod a+r: %w", user.UID, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", d.File.Name(), err)
	}
	return nil
}

// DiskBytes is the size of a disk's image, in whole sectors.
func DiskBytes(d hypervisor.Disk) (uint64, error) {
	info, err := d.File.Stat()
	if err != nil {
		return 0, fmt.Errorf("image: %w: %w", err, ErrorClass(err))
	}
	bytes := uint64(info.Size())
	if info.Mode().Type() == fs.ModeDevice {
		raw, err := d.File.SyscallConn()
		if err != nil {
			return 0, fmt.Errorf("image: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		var n int
		var opErr error
		err = raw.Control(func(fd uintptr) { n, opErr = unix.IoctlGetInt(int(fd), unix.BLKGETSIZE64) })
		if err = errors.Join(err, opErr); err != nil {
			return 0, fmt.Errorf("image %s: its size: %w: %w", d.File.Name(), err, ErrorClass(err))
		}
		bytes = uint64(n)
	}
	return bytes / 512 * 512, nil
}

// CheckNICs reports the first network card that no VMM could have.
func CheckNICs(nics []hypervisor.NIC) error {
	for _, nic := range nics {
		switch {
		case nic.Tap == nil:
			return fmt.Errorf("network card %s: no tap: %w", nic.ID, errdefs.ErrInvalidArgument)
		case len(nic.MAC) != 6:
			return fmt.Errorf("network card %s: MAC address %q is not one of Ethernet: %w", nic.ID, nic.MAC, errdefs.ErrInvalidArgument)
		case nic.MTU != 0 && (nic.MTU < 68 || nic.MTU > 65535):
			return fmt.Errorf("network card %s: MTU %d is not between 68 and 65535: %w", nic.ID, nic.MTU, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// OpenImage opens the guest's kernel or initrd and checks that the VMM's user can read it.
func OpenImage(what, path string, user *hypervisor.User) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the guest's %s: %w: %w", what, err, ErrorClass(err))
	}
	if user == nil {
		return f, nil
	}
	ok, err := Readable(f, *user)
	if err == nil && !ok {
		err = fmt.Errorf("it cannot be read by user %d, whom the VMM runs as; make it readable with chmod a+r: %w", user.UID, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("the guest's %s %s: %w", what, path, err)
	}
	return f, nil
}

// Readable tells whether a user may read a file that it is shown.
func Readable(f *os.File, user hypervisor.User) (bool, error) {
	var stat unix.Stat_t
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var opErr error
	err = raw.Control(func(fd uintptr) { opErr = unix.Fstat(int(fd), &stat) })
	if err == nil {
		err = opErr
	}
	switch {
	case err != nil:
		return false, fmt.Errorf("%w: %w", err, ErrorClass(err))
	case stat.Uid == user.UID:
		return stat.Mode&0o400 != 0, nil
	case stat.Gid == user.GID:
		return stat.Mode&0o040 != 0, nil
	}
	return stat.Mode&0o004 != 0, nil
}
