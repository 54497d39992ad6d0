package modules

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/rootfs"
)

const (
	// HelperPath is what the kernel starts when it wants a module.
	HelperPath = "/sbin/modprobe"

	dir        = "/run/pistis/modules"
	recordFile = dir + "/disk"
	lockFile   = dir + "/lock"
	mountPoint = dir + "/mnt"
	// agentPath is this program in the guest.
	agentPath = "/init"
	// helperTimeout bounds one request of the kernel, of which it has no more than 50 at a time.
	helperTimeout = 30 * time.Second
)

// Offer has the kernel ask for modules that are on a disk. It is called once.
func Offer(disk *agentv1.DiskAddress) error {
	record, err := proto.Marshal(disk)
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(mountPoint, 0o700), os.MkdirAll(filepath.Dir(HelperPath), 0o755)); err != nil {
		return err
	}
	if err := os.WriteFile(recordFile, record, 0o600); err != nil {
		return err
	}
	if err := os.Symlink(agentPath, HelperPath); err != nil {
		return err
	}
	return os.WriteFile("/proc/sys/kernel/modprobe", []byte(HelperPath), 0)
}

// Helper is the process that the kernel starts, with "-q -- name". It returns the exit code.
func Helper(args []string) int {
	if len(args) == 0 {
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	err := Load(ctx, args[len(args)-1])
	if err == nil {
		return 0
	}
	if !errdefs.IsNotFound(err) { // any process can ask for what is not there
		report(err)
	}
	return 1
}

// report writes to the kernel's log: this process has no other place.
func report(err error) {
	f, openErr := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if openErr != nil {
		return
	}
	defer f.Close()
	fmt.Fprintf(f, "<4>pistis: kernel module on demand: %v\n", err)
}

// Load loads the modules that a name stands for, which is a module's or an alias. What may not be loaded is NotFound.
func Load(ctx context.Context, name string) error {
	if err := mount(ctx); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(mountPoint, IndexFile))
	if err != nil {
		return err
	}
	defer f.Close()
	list, err := parseIndex(f)
	if err != nil {
		return fmt.Errorf("index: %w", err)
	}
	found := list.find(name)
	if len(found) == 0 {
		return fmt.Errorf("module %.100q: %w", name, errdefs.ErrNotFound)
	}
	for _, m := range found {
		if err := load(m); err != nil {
			return fmt.Errorf("module %s: %w", m.name, err)
		}
	}
	return nil
}

// mount mounts the disk unless it is.
func mount(ctx context.Context) error {
	lock, err := os.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(mountPoint, IndexFile)); err == nil {
		return nil
	}
	record, err := os.ReadFile(recordFile)
	if err != nil {
		return err
	}
	disk := &agentv1.DiskAddress{}
	if err := proto.Unmarshal(record, disk); err != nil {
		return err
	}
	device, err := rootfs.Disk(ctx, disk)
	if err != nil {
		return err
	}
	if err := unix.Mount(device, mountPoint, "ext4", unix.MS_RDONLY|unix.MS_NOATIME|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	return nil
}

func load(m module) error {
	if _, err := os.Stat("/sys/module/" + m.name + "/initstate"); err == nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(mountPoint, m.path), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
