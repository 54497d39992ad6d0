package main

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/transport"
)

// memory returns the text at the beginning of what the guest has in common with the host, and writes one into its middle.
func memory(text string) (_ string, err error) {
	device, err := transport.MemoryDevice(transport.VirtioDevices)
	if err != nil {
		return "", err
	}
	var f *os.File
	err = waitFor(func() error {
		f, err = transport.OpenMemory(device, "/dev")
		return err
	})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// A mapping begins with a page.
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unix.Munmap(page)) }()
	if _, err := f.ReadAt(page, 0); err != nil {
		return "", err
	}
	found, _, _ := bytes.Cut(page, []byte{0})
	answer := string(found)
	clear(page)
	copy(page, text)
	_, err = f.WriteAt(page, transport.MemorySize/2)
	return answer, err
}
