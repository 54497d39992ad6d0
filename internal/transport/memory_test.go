package transport

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestOpenMemory(t *testing.T) {
	dir, dev := t.TempDir(), t.TempDir()
	device := func(name, number string) {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(at, "device"), []byte(number+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	device("virtio0", "0x0002")
	if _, err := MemoryDevice(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the device: %v", err)
	}
	device("virtio1", "0x001b")
	at, err := MemoryDevice(dir)
	if want := filepath.Join(dir, "virtio1"); err != nil || at != want {
		t.Fatalf("found at %s and not at %s: %v", at, want, err)
	}
	if _, err := OpenMemory(at, dev); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before its drivers are there: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(at, "ndbus0/region0/namespace0.0/block/pmem3"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMemory(at, dev); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before its node is there: %v", err)
	}
	node := filepath.Join(dev, "pmem3")
	if err := errors.Join(os.WriteFile(node, nil, 0o644), os.Truncate(node, MemorySize)); err != nil {
		t.Fatal(err)
	}
	f, err := OpenMemory(at, dev)
	if errors.Is(err, syscall.EINVAL) {
		t.Skip("SKIPPED: this file system has no O_DIRECT")
	}
	if err != nil {
		t.Fatal(err)
	}
	if f.Close(); f.Name() != node {
		t.Errorf("%s is open", f.Name())
	}
	if err := os.Truncate(node, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMemory(at, dev); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a small one: %v", err)
	}
}
