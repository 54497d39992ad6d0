package vmm

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCommonMemory: its size is the same for ever, and a VMM of any user can open it again.
func TestCommonMemory(t *testing.T) {
	const size = 1 << 20
	f, err := CommonMemory(size)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != size || info.Mode().Perm()&0o666 != 0o666 {
		t.Errorf("%v, %v", info, err)
	}
	for _, other := range []int64{0, 2 * size} {
		if err := f.Truncate(other); !errors.Is(err, unix.EPERM) {
			t.Errorf("%d bytes of it: %v", other, err)
		}
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); !errors.Is(err, unix.EPERM) {
		t.Errorf("another seal: %v", err)
	}
}
