package main

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// shareRootVerb makes this program, in a mount namespace of its own, the server of the lab's root.
	shareRootVerb = "share-root"
	// shareDir is where the root is shown to the server; any directory that every machine has would do.
	shareDir = "/mnt"
)

// shareRoot shows the machine's root, with what is mounted below it, read-only, without what the lab has of its own,
// and becomes virtiofsd. The argument is the descriptor of its socket. It returns only with an error.
func shareRoot(args []string) error {
	if len(args) != 1 {
		return errors.New("no descriptor given")
	}
	if err := unix.Mount("/", shareDir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind the root: %w", err)
	}
	for _, dir := range []string{"proc", "sys", "dev", "run"} {
		// Where it is no mount of its own there is nothing to hide.
		if err := unix.Unmount(shareDir+"/"+dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("hide /%s: %w", dir, err)
		}
	}
	readOnly := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, shareDir, unix.AT_RECURSIVE, readOnly); err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	return syscall.Exec(virtiofsdProgram, []string{
		"virtiofsd", "-f", "-o", "source=" + shareDir, "-o", "sandbox=chroot", "-o", "log_level=err", "--fd=" + args[0],
	}, os.Environ())
}
