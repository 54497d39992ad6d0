package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The suffixes of the pins that CreateOwned makes beside that of the network namespace.
const (
	UserSuffix = ".user"
	IPCSuffix  = ".ipc"
	UTSSuffix  = ".uts"
)

// UserNS is the pin of the user namespace that CreateOwned made with a network namespace.
func UserNS(path string) string { return path + UserSuffix }

// CreateOwned is Create for a pod with a user namespace of its own, which must exist before those that it owns. It makes
// the user namespace with these mappings, and in it network, IPC and UTS namespaces, which are pinned beside the network's.
// Remove of the returned path removes all four pins.
func CreateOwned(dir, id string, uids, gids []syscall.SysProcIDMap) (path string, err error) {
	path, err = makePin(dir, id)
	if err != nil {
		return "", err
	}
	// Only a process can be put into a user namespace when it is made: one that the kernel stops at its first
	// instruction, by ptrace, so that nothing of it ever runs. Tracer and parent-death signal belong to a thread.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- pinOwned(path, uids, gids)
	}()
	if err := <-done; err != nil {
		return "", errors.Join(fmt.Errorf("create user namespace: %s: %w", id, err), Remove(path))
	}
	return path, nil
}

func pinOwned(path string, uids, gids []syscall.SysProcIDMap) (err error) {
	cmd := exec.Cmd{Path: "/proc/self/exe", SysProcAttr: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: uids, GidMappings: gids, Ptrace: true, Pdeathsig: unix.SIGKILL,
	}}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		killErr := cmd.Process.Kill()
		// How a process ends that was killed is no news.
		if waitErr := cmd.Wait(); waitErr != nil && !errors.As(waitErr, new(*exec.ExitError)) {
			killErr = errors.Join(killErr, waitErr)
		}
		err = errors.Join(err, killErr)
	}()
	for suffix, kind := range map[string]string{"": "net", UserSuffix: "user", IPCSuffix: "ipc", UTSSuffix: "uts"} {
		pin, err := os.OpenFile(path+suffix, os.O_RDONLY|os.O_CREATE, 0o444)
		if err != nil {
			return err
		}
		pin.Close()
		if err := unix.Mount(fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, kind), path+suffix, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin at %s: %w", path+suffix, err)
		}
	}
	return Do(path, loopbackUp)
}
