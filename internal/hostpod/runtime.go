package hostpod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// hybridControllers is where a host that mounts cgroup v1 and v2 names the controllers of v2.
const hybridControllers = "/sys/fs/cgroup/unified/cgroup.controllers"

// CheckRuntime says why an OCI runtime cannot run containers on this host, as FailedPrecondition. It knows what runtimes
// find out only with the first container.
func CheckRuntime(path string) error { return checkRuntime(path, hybridControllers) }

func checkRuntime(path, controllersFile string) error {
	if filepath.Base(path) != "crun" {
		return nil
	}
	controllers, err := os.ReadFile(controllersFile)
	if err != nil || len(strings.Fields(string(controllers))) == 0 {
		return nil // one hierarchy, or nothing on the second
	}
	return fmt.Errorf("crun runs on no host that has cgroup controllers on v1 and on v2, and here v2 has %s: boot with cgroup v2 alone, or mount them as v1: %w",
		strings.TrimSpace(string(controllers)), errdefs.ErrFailedPrecondition)
}

// CheckRecursiveReadOnly says why mounts cannot be made read-only with all that is mounted below them, as FailedPrecondition.
func CheckRecursiveReadOnly() error {
	// Descriptor -1 is refused by kernels that know the call.
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("this kernel cannot make a mount read-only recursively, which 5.12 and later can; leave recursiveReadOnly out: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
