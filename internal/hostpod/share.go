package hostpod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/network/netns"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// shmOptions are of the pod's /dev/shm; its size is what Docker made customary.
const shmOptions = "mode=1777,size=65536k"

// share makes what the pod's containers have in common: namespaces and /dev/shm.
func (p pod) share() error {
	if !p.cfg.HostIPC {
		if err := os.Mkdir(p.shm(), 0o700); err != nil {
			return fmt.Errorf("shared memory: %w", err)
		}
		if err := unix.Mount("shm", p.shm(), "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, shmOptions); err != nil {
			return fmt.Errorf("shared memory: mount: %w", err)
		}
	}
	if p.cfg.User != nil {
		return p.owned()
	}
	return onThread(p.namespaces)
}

// owned takes over the namespaces that were made with the pod's user namespace, beside that of its network.
func (p pod) owned() error {
	for source, path := range map[string]string{
		p.netns + netns.UserSuffix: p.user(), p.netns + netns.IPCSuffix: p.ipc(), p.netns + netns.UTSSuffix: p.uts(),
	} {
		if err := pin(source, path); err != nil {
			return err
		}
	}
	return p.within(p.nameHost)
}

// within runs fn on a thread in the pod's namespaces, those that it has of its own.
func (p pod) within(fn func() error) error {
	return onThread(func() error {
		for _, ns := range []struct {
			path  string
			kind  int
			hosts bool
		}{
			{p.netns, unix.CLONE_NEWNET, p.cfg.HostNetwork}, {p.uts(), unix.CLONE_NEWUTS, p.cfg.HostNetwork}, {p.ipc(), unix.CLONE_NEWIPC, p.cfg.HostIPC},
		} {
			if ns.hosts {
				continue
			}
			f, err := netns.Open(ns.path)
			if err != nil {
				return err
			}
			err = unix.Setns(int(f.Fd()), ns.kind)
			f.Close()
			if err != nil {
				return fmt.Errorf("enter namespace %s: %w", ns.path, err)
			}
		}
		return fn()
	})
}

// onThread runs fn on a thread that ends with it: one that has left its namespaces is of no use to anybody else.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// namespaces runs on a thread of its own: the new namespaces are the thread's, and pinned before it ends.
func (p pod) namespaces() error {
	flags := 0
	pins := map[string]string{}
	if !p.cfg.HostIPC {
		flags |= unix.CLONE_NEWIPC
		pins["ipc"] = p.ipc()
	}
	if !p.cfg.HostNetwork {
		flags |= unix.CLONE_NEWUTS
		pins["uts"] = p.uts()
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("namespaces: %w", err)
	}
	if err := p.nameHost(); err != nil {
		return err
	}
	for kind, path := range pins {
		if err := pin("/proc/thread-self/ns/"+kind, path); err != nil {
			return err
		}
	}
	return nil
}

// nameHost sets the host name in the UTS namespace of the calling thread, where that is the pod's.
func (p pod) nameHost() error {
	if p.cfg.HostNetwork || p.cfg.Hostname == "" {
		return nil
	}
	if err := unix.Sethostname([]byte(p.cfg.Hostname)); err != nil {
		return fmt.Errorf("hostname %q: %w", p.cfg.Hostname, err)
	}
	return nil
}

// setSysctls sets the pod's sysctls, all of which are of its namespaces.
func (p pod) setSysctls() error {
	if len(p.cfg.Sysctls) == 0 {
		return nil
	}
	return p.within(func() error {
		for name, value := range p.cfg.Sysctls {
			if err := writeSysctl(name, value); err != nil {
				return err
			}
		}
		return nil
	})
}

func pin(namespace, path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("pin namespace: %w", err)
	}
	f.Close()
	if err := unix.Mount(namespace, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace at %s: %w", path, err)
	}
	return nil
}

// unpin is idempotent.
func unpin(path string) error {
	if err := unmount(path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unpin namespace: %w", err)
	}
	return nil
}

// unshare takes back what share made, and the pod's directory.
func (p pod) unshare() error {
	for _, path := range []string{p.sharedPID(), p.uts(), p.ipc(), p.user(), p.shm()} {
		if err := unmount(path); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("pod directory: %w", err)
	}
	return nil
}

// unmount is idempotent.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// sysctlAllowed refuses sysctls that would change the host.
func sysctlAllowed(name string, cfg sandbox.Config) error {
	name = strings.ReplaceAll(name, "/", ".")
	space, host := "", false
	switch {
	case strings.HasPrefix(name, "net."):
		space, host = "network", cfg.HostNetwork
	case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.msg"), strings.HasPrefix(name, "kernel.shm"), name == "kernel.sem":
		space, host = "IPC", cfg.HostIPC
	case name == "kernel.domainname":
		space, host = "UTS", cfg.HostNetwork
	default:
		return fmt.Errorf("sysctl %s belongs to no namespace of a pod, so setting it would change the host; set it on the host: %w", name, errdefs.ErrInvalidArgument)
	}
	if host {
		return fmt.Errorf("sysctl %s: the pod has the host's %s namespace, so setting it would change the host: %w", name, space, errdefs.ErrInvalidArgument)
	}
	return nil
}

// writeSysctl sets one in the namespaces of the calling thread.
func writeSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", sysctlPath(name))
	err := os.WriteFile(path, []byte(value), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sysctl %s: this kernel does not have it: %w", name, errdefs.ErrInvalidArgument)
	}
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sysctl %s: the kernel refuses the value %q: %w", name, value, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("sysctl %s: %w", name, err)
	}
	return nil
}

// sysctlPath turns a.b.c into a/b/c. In the other form, a/b.1/c, dots belong to the names (sysctl(8)).
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return name
	}
	return strings.ReplaceAll(name, ".", "/")
}
