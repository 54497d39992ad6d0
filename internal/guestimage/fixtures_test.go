package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// elfFile is a small ELF file with one section, and with a dynamic linker when asked for.
func elfFile(section string, content []byte, dynamic bool) []byte {
	const headerSize, progSize, sectionSize = 64, 56, 64
	names := []byte("\x00" + section + "\x00.shstrtab\x00")
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1,
		Ehsize: headerSize, Phentsize: progSize, Shentsize: sectionSize, Shnum: 3, Shstrndx: 2,
	}
	at := uint64(headerSize)
	if dynamic {
		header.Phoff, header.Phnum = at, 1
		at += progSize
	}
	contentAt := at
	namesAt := contentAt + uint64(len(content))
	header.Shoff = namesAt + uint64(len(names))
	var b bytes.Buffer
	put := func(v any) {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	put(header)
	if dynamic {
		put(elf.Prog64{Type: uint32(elf.PT_INTERP)})
	}
	b.Write(content)
	b.Write(names)
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: contentAt, Size: uint64(len(content)), Addralign: 1})
	put(elf.Section64{Name: uint32(len(section) + 2), Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names)), Addralign: 1})
	return b.Bytes()
}

// ko is a kernel module that says the given things of itself.
func ko(info ...string) []byte {
	var b bytes.Buffer
	for _, i := range info {
		b.WriteString(i + "\x00")
	}
	return elfFile(".modinfo", b.Bytes(), false)
}

// program is a static ELF program.
func program(content string) []byte { return elfFile(".text", []byte(content), false) }

func compress(t testing.TB, how string, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var err error
	switch how {
	case "gzip":
		w := gzip.NewWriter(&b)
		_, err = w.Write(data)
		err = firstError(err, w.Close())
	case "zstd":
		var w *zstd.Encoder
		if w, err = zstd.NewWriter(&b); err == nil {
			_, err = w.Write(data)
			err = firstError(err, w.Close())
		}
	case "lz4":
		w := lz4.NewWriter(&b)
		if err = w.Apply(lz4.LegacyOption(true)); err == nil {
			_, err = w.Write(data)
			err = firstError(err, w.Close())
		}
	case "xz":
		var w *xz.Writer
		if w, err = xz.NewWriter(&b); err == nil {
			_, err = w.Write(data)
			err = firstError(err, w.Close())
		}
	default:
		return data
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// bzImage is a kernel image around a payload, to which the size is appended where the format has none.
func bzImage(t testing.TB, how, version string, vmlinux []byte) []byte {
	t.Helper()
	payload := compress(t, how, vmlinux)
	if how != "gzip" {
		payload = binary.LittleEndian.AppendUint32(payload, uint32(len(vmlinux)))
	}
	const sectors, offset = 3, 16
	image := make([]byte, (sectors+1)*512+offset, (sectors+1)*512+offset+len(payload))
	image[offSetupSects] = sectors
	image[offBootFlag], image[offBootFlag+1] = 0x55, 0xaa
	copy(image[offHeaderMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[offProtocol:], 0x20f)
	binary.LittleEndian.PutUint16(image[offKernelVersion:], 0x600-0x200)
	copy(image[0x600:], version+" (builder@host) #1 SMP\x00")
	binary.LittleEndian.PutUint32(image[offPayloadOffset:], offset)
	binary.LittleEndian.PutUint32(image[offPayloadLength:], uint32(len(payload)))
	return append(image, payload...)
}

func write(t testing.TB, name string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
