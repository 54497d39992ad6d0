package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/uevent"
)

const (
	// diskTimeout bounds the wait for a disk that the host says it attached.
	diskTimeout = 10 * time.Second
	// flatLUN marks the addressing method of LUNs from 256 on.
	flatLUN = 0x4000
	// sector is what sysfs counts in.
	sector = 512
)

// disks finds block devices. The fields are the mount points of sysfs and devtmpfs.
type disks struct{ sys, dev string }

// Disk waits for a disk that the host has attached and returns the path of its device.
func Disk(ctx context.Context, addr *agentv1.DiskAddress) (string, error) {
	return disks{sys: "/sys", dev: "/dev"}.wait(ctx, addr)
}

// diskKey names a disk in tables and messages. An address that says nothing is an error.
func diskKey(addr *agentv1.DiskAddress) (string, error) {
	switch a := addr.GetAddress().(type) {
	case *agentv1.DiskAddress_ScsiLun:
		if a.ScsiLun >= flatLUN {
			return "", fmt.Errorf("disk: scsi lun %d: must be less than %d: %w", a.ScsiLun, flatLUN, errdefs.ErrInvalidArgument)
		}
		return "scsi lun " + strconv.FormatUint(uint64(a.ScsiLun), 10), nil
	case *agentv1.DiskAddress_Serial:
		if a.Serial == "" || len(a.Serial) > 20 {
			return "", fmt.Errorf("disk: serial %q: must have 1 to 20 bytes: %w", a.Serial, errdefs.ErrInvalidArgument)
		}
		return "serial " + a.Serial, nil
	case *agentv1.DiskAddress_Device:
		if a.Device == "" || strings.ContainsAny(a.Device, "/\x00") || strings.HasPrefix(a.Device, ".") {
			return "", fmt.Errorf("disk: device %q is not a name in /dev: %w", a.Device, errdefs.ErrInvalidArgument)
		}
		return "device " + a.Device, nil
	}
	return "", fmt.Errorf("disk: the address is empty: %w", errdefs.ErrInvalidArgument)
}

// wait returns the device's path once it is there.
func (d disks) wait(ctx context.Context, addr *agentv1.DiskAddress) (string, error) {
	key, err := diskKey(addr)
	if err != nil {
		return "", err
	}
	var path string
	try := func() (bool, error) {
		name := d.find(addr)
		if name == "" || !d.sized(name, addr.Bytes) {
			return false, nil
		}
		// The name shows before the disk can be opened; the event that announces it comes after that.
		path = filepath.Join(d.dev, name)
		f, err := os.Open(path)
		if err != nil {
			return false, nil
		}
		return true, f.Close()
	}
	// What nothing announces is asked for: a disk that was plugged before the controller had its driver, or one
	// that was deleted here earlier and is still attached.
	if ok, _ := try(); !ok {
		d.rescan(addr)
	}
	missing := errors.New("missing")
	ctx, cancel := context.WithTimeoutCause(ctx, diskTimeout, missing)
	defer cancel()
	err = uevent.Wait(ctx, try)
	if errors.Is(err, missing) {
		return "", fmt.Errorf("disk %s: did not appear within %v: %w", key, diskTimeout, errdefs.ErrNotFound)
	}
	return path, err
}

// find returns the name of the block device, or nothing.
func (d disks) find(addr *agentv1.DiskAddress) string {
	switch a := addr.GetAddress().(type) {
	case *agentv1.DiskAddress_ScsiLun:
		if dev := d.scsi(a.ScsiLun); dev != "" {
			return d.only(filepath.Join(dev, "block", "*"))
		}
	case *agentv1.DiskAddress_Serial:
		found, _ := filepath.Glob(filepath.Join(d.sys, "block", "vd*", "serial"))
		for _, path := range found {
			if text, err := os.ReadFile(path); err == nil && strings.TrimRight(string(text), "\n\x00") == a.Serial {
				return filepath.Base(filepath.Dir(path))
			}
		}
	case *agentv1.DiskAddress_Device:
		if _, err := os.Stat(filepath.Join(d.sys, "block", a.Device)); err == nil {
			return a.Device
		}
	}
	return ""
}

// sized tells whether a device has as many bytes as it should; 0 is any number.
func (d disks) sized(name string, bytes uint64) bool {
	if bytes == 0 {
		return true
	}
	text, err := os.ReadFile(filepath.Join(d.sys, "block", name, "size"))
	sectors, parseErr := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return err == nil && parseErr == nil && sectors == bytes/sector
}

// scsi returns the sysfs directory of the device with a LUN on the virtio controller, or nothing.
func (d disks) scsi(lun uint32) string {
	if lun >= 256 {
		lun |= flatLUN
	}
	found, _ := filepath.Glob(filepath.Join(d.sys, "bus/scsi/devices", fmt.Sprintf("*:0:0:%d", lun)))
	for _, dev := range found {
		host, _, _ := strings.Cut(filepath.Base(dev), ":")
		name, err := os.ReadFile(filepath.Join(d.sys, "class/scsi_host", "host"+host, "proc_name"))
		if err == nil && strings.TrimSpace(string(name)) == "virtio_scsi" {
			return dev
		}
	}
	return ""
}

func (d disks) only(pattern string) string {
	found, _ := filepath.Glob(pattern)
	if len(found) != 1 {
		return ""
	}
	return filepath.Base(found[0])
}

// rescan asks the virtio controllers for one LUN, or the PCI bus for what was plugged: not every VMM announces it.
func (d disks) rescan(addr *agentv1.DiskAddress) {
	switch a := addr.GetAddress().(type) {
	case *agentv1.DiskAddress_Serial:
		_ = os.WriteFile(filepath.Join(d.sys, "bus/pci/rescan"), []byte("1"), 0)
	case *agentv1.DiskAddress_ScsiLun:
		found, _ := filepath.Glob(filepath.Join(d.sys, "class/scsi_host/host*/scan"))
		for _, path := range found {
			name, err := os.ReadFile(filepath.Join(filepath.Dir(path), "proc_name"))
			if err == nil && strings.TrimSpace(string(name)) == "virtio_scsi" {
				_ = os.WriteFile(path, fmt.Appendf(nil, "0 0 %d", a.ScsiLun), 0)
			}
		}
	}
}

// remove makes the guest forget a disk before the host takes it away. Only SCSI disks need it.
func (d disks) remove(addr *agentv1.DiskAddress) error {
	a, ok := addr.GetAddress().(*agentv1.DiskAddress_ScsiLun)
	if !ok {
		return nil
	}
	dev := d.scsi(a.ScsiLun)
	if dev == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dev, "delete"), []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("disk scsi lun %d: remove: %w", a.ScsiLun, err)
	}
	return nil
}
