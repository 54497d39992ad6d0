package transport

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MemorySize is how much memory host and guest have in common, for data that would be slow through a stream.
const MemorySize = 8 << 20

// VirtioDevices is where a kernel shows the devices of its virtio bus.
const VirtioDevices = "/sys/bus/virtio/devices"

// memoryDevice is virtio's number of the device as which the guest has the memory: persistent memory, which guests cache
// on whatever processor.
const memoryDevice = "0x001b"

// MemoryDrivers are where the kernel shows the drivers that make a block device of it, if it has them; their modules have their
// names. The first one comes first.
func MemoryDrivers() []string {
	return []string{"/sys/bus/virtio/drivers/virtio_pmem", "/sys/bus/nd/drivers/nd_pmem"}
}

// MemoryDevice finds the device below devices. The error is fs.ErrNotExist where there is none.
func MemoryDevice(devices string) (string, error) {
	entries, err := os.ReadDir(devices)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		device := filepath.Join(devices, e.Name())
		if got, err := os.ReadFile(filepath.Join(device, "device")); err == nil && strings.TrimSpace(string(got)) == memoryDevice {
			return device, nil
		}
	}
	return "", fmt.Errorf("%s: no device with number %s: %w", devices, memoryDevice, fs.ErrNotExist)
}

// OpenMemory opens, in the guest, what it has in common with the host, as a file that is read and written past the kernel's cache:
// with places, lengths and addresses that are multiples of 4 KiB. device is where MemoryDevice found it, dev has the nodes of devices. The error is fs.ErrNotExist
// for as long as the kernel's drivers have not made a block device of it.
func OpenMemory(device, dev string) (*os.File, error) {
	f, err := openMemory(device, dev)
	if err != nil {
		return nil, fmt.Errorf("memory of the device %s: %w", filepath.Base(device), err)
	}
	return f, nil
}

func openMemory(device, dev string) (_ *os.File, err error) {
	found, err := filepath.Glob(filepath.Join(device, "ndbus*", "region*", "namespace*", "block", "*"))
	if err != nil {
		return nil, err
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("it is %d block devices: %w", len(found), fs.ErrNotExist)
	}
	f, err := os.OpenFile(filepath.Join(dev, filepath.Base(found[0])), os.O_RDWR|unix.O_DIRECT, 0)
	if errors.Is(err, unix.ENXIO) { // its node comes first
		err = errors.Join(err, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil && size < MemorySize {
		err = fmt.Errorf("%d bytes are less than %d", size, MemorySize)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
