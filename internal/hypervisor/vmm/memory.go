package vmm

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	memoryDir  = "/memory"
	memoryName = "common"
	// MemoryFile is the jail's name of what its VM has in common with the host.
	MemoryFile = memoryDir + "/" + memoryName
)

// CommonMemory makes memory for a guest and processes of the host. Its size is sealed: who maps it need not fear that
// somebody else makes it smaller.
func CommonMemory(size int64) (*os.File, error) {
	// A host may want it said that nobody runs it as a program (sysctl vm.memfd_noexec); kernels before 6.3 do not know that.
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("pistis-common", flags|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate("pistis-common", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("memory for the guest and the host: %w: %w", err, ErrorClass(err))
	}
	f := os.NewFile(uintptr(fd), "pistis-common")
	if err = f.Truncate(size); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for the guest and the host: %w: %w", err, ErrorClass(err))
	}
	return f, nil
}

// CommonMemory makes Memory and shows it to a VMM that takes files by name. It is a file system's of its own that is memory, whatever
// the run directory lies on, and that goes with the jail and the last who has the file open. The VMM can make it smaller: who maps
// it has to bear that.
func (k *Kit) CommonMemory(size int64) error {
	tree, err := newTmpfs(size)
	if err != nil {
		return fmt.Errorf("memory for the guest and the host: %w: %w", err, ErrorClass(err))
	}
	k.Lend(tree)
	k.Jail.memory = tree
	if k.Memory, err = k.memoryFile(int(tree.Fd()), size); err != nil {
		return fmt.Errorf("memory for the guest and the host: %w: %w", err, ErrorClass(err))
	}
	k.Keep(k.Memory)
	return nil
}

func (k *Kit) memoryFile(dir int, size int64) (*os.File, error) {
	fd, err := unix.Openat(dir, memoryName, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	f := os.NewFile(uintptr(fd), memoryName)
	err = f.Truncate(size)
	if u := k.user; err == nil && u != nil {
		err = f.Chown(int(u.UID), int(u.GID))
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// newTmpfs makes a file system for one file of so many bytes, attached nowhere.
func newTmpfs(size int64) (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for _, option := range [][2]string{{"mode", "0755"}, {"size", strconv.FormatInt(size, 10)}, {"nr_inodes", "2"}} {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return nil, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(tree), "tmpfs"), nil
}
