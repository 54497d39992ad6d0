package transport

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// MemorySize is how much memory host and guest have in common beside a virtio-serial port, for data that would be slow through it.
const MemorySize = 8 << 20

// The device as whose second region the guest has it: ivshmem, which needs no driver.
const (
	memoryVendor, memoryDevice = "0x1af4", "0x1110"
	memoryRegion               = "resource2"
)

// PCIDevices is where a kernel shows the devices of its PCI bus.
const PCIDevices = "/sys/bus/pci/devices"

// MapMemory maps, in the guest, what it has in common with the host, for as long as the process lives. The error is
// fs.ErrNotExist where there is no such device below devices.
func MapMemory(devices string) ([]byte, error) {
	entries, err := os.ReadDir(devices)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		device := filepath.Join(devices, e.Name())
		if !attributeIs(device, "vendor", memoryVendor) || !attributeIs(device, "device", memoryDevice) {
			continue
		}
		data, err := mapRegion(device)
		if err != nil {
			return nil, fmt.Errorf("memory of the PCI device %s: %w", e.Name(), err)
		}
		return data, nil
	}
	return nil, fmt.Errorf("%s: no device of %s with number %s: %w", devices, memoryVendor, memoryDevice, fs.ErrNotExist)
}

func attributeIs(device, name, want string) bool {
	got, err := os.ReadFile(filepath.Join(device, name))
	return err == nil && strings.TrimSpace(string(got)) == want
}

func mapRegion(device string) ([]byte, error) {
	// Firmware need not have done it for a device that nobody boots from.
	if err := os.WriteFile(filepath.Join(device, "enable"), []byte("1"), 0); err != nil && !errors.Is(err, unix.EIO) {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(device, memoryRegion), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() < MemorySize {
		return nil, fmt.Errorf("%d bytes are less than %d", info.Size(), MemorySize)
	}
	return unix.Mmap(int(f.Fd()), 0, MemorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}
