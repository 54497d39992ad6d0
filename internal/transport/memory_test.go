package transport

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestMapMemory(t *testing.T) {
	dir := t.TempDir()
	device := func(name, vendor, number string, size int64) {
		at := filepath.Join(dir, name)
		if err := errors.Join(
			os.Mkdir(at, 0o755), os.WriteFile(filepath.Join(at, "vendor"), []byte(vendor+"\n"), 0o644), os.WriteFile(filepath.Join(at, "device"), []byte(number+"\n"), 0o644),
			os.WriteFile(filepath.Join(at, "resource2"), nil, 0o644), os.Truncate(filepath.Join(at, "resource2"), size),
		); err != nil {
			t.Fatal(err)
		}
	}
	device("0000:00:01.0", "0x8086", "0x1110", MemorySize)
	device("0000:00:02.0", "0x1af4", "0x1043", MemorySize)
	if _, err := MapMemory(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the device: %v", err)
	}
	device("0000:00:03.0", "0x1af4", "0x1110", MemorySize)
	data, err := MapMemory(dir)
	if err != nil || len(data) != MemorySize {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
	data[MemorySize-1] = 1
	if got, err := os.ReadFile(filepath.Join(dir, "0000:00:03.0", "resource2")); err != nil || got[MemorySize-1] != 1 {
		t.Errorf("it is a copy: %v", err)
	}
	if err := os.Truncate(filepath.Join(dir, "0000:00:03.0", "resource2"), 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := MapMemory(dir); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a small one: %v", err)
	}
}
