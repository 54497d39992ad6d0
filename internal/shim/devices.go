package shim

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/vm"
)

// blockDevice is a block device of the host that a container gets as a disk of its VM.
type blockDevice struct {
	disk vm.Disk
	spec specs.LinuxDevice
	// access is what the container may do, as in the devices' control group.
	access string
}

// takeBlockDevices takes the block devices out of a host's spec: a guest has disks for them, under numbers of its own.
func takeBlockDevices(linux *specs.Linux) ([]blockDevice, error) {
	if linux == nil {
		return nil, nil
	}
	var taken []blockDevice
	for _, d := range linux.Devices {
		if d.Type != "b" {
			continue
		}
		path, err := devicePath(d.Major, d.Minor)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Path, err)
		}
		access := takeAccess(linux.Resources, d.Major, d.Minor)
		taken = append(taken, blockDevice{
			disk: vm.Disk{Path: path, ReadOnly: !strings.Contains(access, "w"), Volume: true}, spec: d, access: access,
		})
	}
	linux.Devices = slices.DeleteFunc(slices.Clone(linux.Devices), func(d specs.LinuxDevice) bool { return d.Type == "b" })
	return taken, nil
}

// takeAccess removes the rules for a device and returns what they allow. Without any a container may use all devices.
func takeAccess(r *specs.LinuxResources, major, minor int64) string {
	access := ""
	if r != nil {
		r.Devices = slices.DeleteFunc(slices.Clone(r.Devices), func(rule specs.LinuxDeviceCgroup) bool {
			is := rule.Allow && rule.Type == "b" && rule.Major != nil && *rule.Major == major && rule.Minor != nil && *rule.Minor == minor
			if is {
				access += rule.Access
			}
			return is
		})
	}
	if access == "" {
		return "rwm"
	}
	return access
}

// devicePath finds the device file of a block device by what the kernel calls it.
func devicePath(major, minor int64) (string, error) {
	number := fmt.Sprintf("%d:%d", major, minor)
	f, err := os.Open(filepath.Join("/sys/dev/block", number, "uevent"))
	if err != nil {
		return "", fmt.Errorf("this node has no block device %s: %w: %w", number, err, errdefs.ErrInvalidArgument)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, ok := strings.CutPrefix(lines.Text(), "DEVNAME=")
		if !ok {
			continue
		}
		path := filepath.Join("/dev", name)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return "", fmt.Errorf("block device %s: %w: %w", number, err, errdefs.ErrFailedPrecondition)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(uint32(major), uint32(minor)) {
			return "", fmt.Errorf("block device %s: %s is another device: %w", number, path, errdefs.ErrFailedPrecondition)
		}
		return path, nil
	}
	return "", fmt.Errorf("block device %s has no name: %w", number, errdefs.ErrFailedPrecondition)
}

// wireDevices says where the guest finds the disks of devices.
func wireDevices(devices []blockDevice, at []*agentv1.DiskAddress) []*agentv1.BlockDevice {
	var out []*agentv1.BlockDevice
	for i, d := range devices {
		wire := &agentv1.BlockDevice{Disk: at[i], Path: d.spec.Path, Access: d.access, Mode: 0o660}
		if d.spec.FileMode != nil {
			wire.Mode = uint32(d.spec.FileMode.Perm())
		}
		if d.spec.UID != nil {
			wire.Uid = *d.spec.UID
		}
		if d.spec.GID != nil {
			wire.Gid = *d.spec.GID
		}
		out = append(out, wire)
	}
	return out
}
