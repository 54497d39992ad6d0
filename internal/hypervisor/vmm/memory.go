package vmm

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CommonMemory makes memory for a guest and processes of the host. Its size is sealed: who maps it need not fear that
// somebody else makes it smaller.
func CommonMemory(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("pistis-common", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
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
