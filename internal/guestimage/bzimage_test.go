package guestimage

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestWriteVmlinux(t *testing.T) {
	vmlinux := elfFile(".text", bytes.Repeat([]byte("Linux version 6.1.0-test (x) and much code "), 300_000), false)
	for _, how := range []string{"gzip", "zstd", "lz4", "xz"} {
		t.Run(how, func(t *testing.T) {
			file := write(t, filepath.Join(t.TempDir(), "vmlinuz"), bzImage(t, how, "6.1.0-test", vmlinux))
			var got bytes.Buffer
			if err := WriteVmlinux(&got, file); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), vmlinux) {
				t.Errorf("%d bytes came out, want %d", got.Len(), len(vmlinux))
			}
		})
	}
	t.Run("elf", func(t *testing.T) {
		file := write(t, filepath.Join(t.TempDir(), "vmlinux"), vmlinux)
		var got bytes.Buffer
		if err := WriteVmlinux(&got, file); err != nil || !bytes.Equal(got.Bytes(), vmlinux) {
			t.Errorf("%d bytes, %v", got.Len(), err)
		}
	})
}

func TestVersion(t *testing.T) {
	vmlinux := program("... Linux version 6.12.1-cloud (gcc) ...")
	for name, image := range map[string][]byte{"bzImage": bzImage(t, "gzip", "6.12.1-cloud", vmlinux), "vmlinux": vmlinux} {
		got, err := Version(write(t, filepath.Join(t.TempDir(), name), image))
		if err != nil || got != "6.12.1-cloud" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestBadKernels(t *testing.T) {
	good := bzImage(t, "zstd", "6.1.0", program(strings.Repeat("code", 1000)))
	change := func(f func([]byte)) []byte {
		image := bytes.Clone(good)
		f(image)
		return image
	}
	for name, image := range map[string][]byte{
		"empty":          {},
		"text":           []byte(strings.Repeat("no kernel", 1000)),
		"old protocol":   change(func(b []byte) { binary.LittleEndian.PutUint16(b[offProtocol:], 0x204) }),
		"outside":        change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayloadOffset:], 1<<31) }),
		"too long":       change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayloadLength:], 1<<31) }),
		"no payload":     change(func(b []byte) { binary.LittleEndian.PutUint32(b[offPayloadLength:], 0) }),
		"size too small": change(func(b []byte) { binary.LittleEndian.PutUint32(b[len(b)-4:], 5) }),
		"size too large": change(func(b []byte) { binary.LittleEndian.PutUint32(b[len(b)-4:], 1<<20) }),
		"size absurd":    change(func(b []byte) { binary.LittleEndian.PutUint32(b[len(b)-4:], 1<<31) }),
		"damaged":        change(func(b []byte) { b[len(b)-20] ^= 0xff }),
		"cut":            good[:len(good)-10],
		"not elf inside": bzImage(t, "lz4", "6.1.0", []byte(strings.Repeat("text", 1000))),
		"no compression": bzImage(t, "none", "6.1.0", program("code")),
	} {
		file := write(t, filepath.Join(t.TempDir(), "vmlinuz"), image)
		if err := WriteVmlinux(&bytes.Buffer{}, file); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := WriteVmlinux(&bytes.Buffer{}, "/no/such/file"); !errdefs.IsNotFound(err) {
		t.Errorf("no file: %v", err)
	}
}

func TestXZDictionaryIsBounded(t *testing.T) {
	data := compress(t, "xz", []byte("some content"))
	at := bytes.Index(data, []byte{xzFilterLZMA2, 1})
	if at < 0 {
		t.Fatal("no lzma2 filter in the header")
	}
	data[at+2] = 40 // 4 GiB
	if _, _, err := xzReader(data); err == nil || !strings.Contains(err.Error(), "dictionary") {
		t.Errorf("got %v", err)
	}
}

// TestX86Filter has the filter's two cases. That it undoes what `xz --x86` did was checked on whole kernels and
// programs.
func TestX86Filter(t *testing.T) {
	// A call at offset 8 to an absolute 0x00000110 was relative 0x110-13.
	filtered := append(bytes.Repeat([]byte{0x90}, 8), 0xe8, 0x10, 0x01, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90)
	want := append(bytes.Repeat([]byte{0x90}, 8), 0xe8, 0x03, 0x01, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90)
	undoX86Filter(filtered)
	if !bytes.Equal(filtered, want) {
		t.Errorf("got % x", filtered)
	}
	// A target outside of 16 MiB is left alone.
	far := append(bytes.Repeat([]byte{0x90}, 8), 0xe8, 1, 2, 3, 4, 0x90, 0x90, 0x90, 0x90)
	untouched := bytes.Clone(far)
	if undoX86Filter(far); !bytes.Equal(far, untouched) {
		t.Errorf("got % x", far)
	}
	undoX86Filter([]byte{0xe8, 0xe8, 0xe8}) // too short for an instruction
}

func FuzzExtractVmlinux(f *testing.F) {
	vmlinux := program(strings.Repeat("code", 100))
	for _, how := range []string{"gzip", "zstd", "lz4", "xz", "none"} {
		f.Add(bzImage(f, how, "6.1.0", vmlinux))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		out, err := extractVmlinux(image)
		if err == nil && (!isELF(out) || len(out) > maxKernel) {
			t.Errorf("%d bytes that are no ELF file", len(out))
		}
	})
}

func FuzzX86Filter(f *testing.F) {
	f.Add([]byte{0xe8, 1, 0, 0, 0, 0xe9, 0xe8, 0xe8, 0, 0xff, 0xff, 0xff, 0})
	f.Fuzz(func(t *testing.T, data []byte) { undoX86Filter(data) })
}
