package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"regexp"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// maxKernel bounds a kernel image, compressed or not.
const maxKernel = 256 << 20

// Offsets in the setup header of a bzImage (the kernel's Documentation/arch/x86/boot.rst).
const (
	offSetupSects     = 0x1f1
	offBootFlag       = 0x1fe
	offHeaderMagic    = 0x202
	offProtocol       = 0x206
	offKernelVersion  = 0x20e
	offPayloadOffset  = 0x248
	offPayloadLength  = 0x24c
	setupHeaderLength = 0x250
)

var banner = regexp.MustCompile(`Linux version ([0-9][^ \x00]{0,63}) `)

// Version is the version of a kernel, bzImage or vmlinux, as uname -r tells it.
func Version(file string) (string, error) {
	image, err := readKernel(file)
	if err != nil {
		return "", err
	}
	if isELF(image) {
		if m := banner.FindSubmatch(image); m != nil {
			return string(m[1]), nil
		}
		return "", fmt.Errorf("kernel: %s: no Linux kernel (it has no version banner): %w", file, errdefs.ErrInvalidArgument)
	}
	if err := checkHeader(image); err != nil {
		return "", fmt.Errorf("kernel: %s: %w", file, err)
	}
	at := int(binary.LittleEndian.Uint16(image[offKernelVersion:])) + 0x200
	if at >= len(image) {
		return "", fmt.Errorf("kernel: %s: version string outside of the file: %w", file, errdefs.ErrInvalidArgument)
	}
	version, _, _ := bytes.Cut(image[at:min(len(image), at+128)], []byte{0})
	version, _, _ = bytes.Cut(version, []byte{' '})
	if len(version) == 0 || bytes.ContainsAny(version, "/\n") {
		return "", fmt.Errorf("kernel: %s: bad version string %q: %w", file, version, errdefs.ErrInvalidArgument)
	}
	return string(version), nil
}

// WriteVmlinux writes the ELF kernel that is inside a bzImage to w, for VMMs that boot nothing else. A file
// that is an ELF kernel already is copied.
func WriteVmlinux(w io.Writer, file string) error {
	image, err := readKernel(file)
	if err != nil {
		return err
	}
	if !isELF(image) {
		if image, err = extractVmlinux(image); err != nil {
			return fmt.Errorf("kernel: %s: %w", file, err)
		}
	}
	_, err = w.Write(image)
	return err
}

func readKernel(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("kernel: %w: %w", err, errdefs.ErrNotFound)
	}
	defer f.Close()
	image, err := readBounded(f, maxKernel)
	if err != nil {
		return nil, fmt.Errorf("kernel: %s: %w", file, err)
	}
	return image, nil
}

func isELF(image []byte) bool { return bytes.HasPrefix(image, []byte(elf.ELFMAG)) }

func checkHeader(image []byte) error {
	switch {
	case len(image) < setupHeaderLength || image[offBootFlag] != 0x55 || image[offBootFlag+1] != 0xaa ||
		string(image[offHeaderMagic:offHeaderMagic+4]) != "HdrS":
		return fmt.Errorf("neither a bzImage nor an ELF kernel: %w", errdefs.ErrInvalidArgument)
	case binary.LittleEndian.Uint16(image[offProtocol:]) < 0x208:
		return fmt.Errorf("bzImage of a boot protocol before 2.08, which does not tell where the kernel is: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// extractVmlinux decompresses the payload of a bzImage.
func extractVmlinux(image []byte) ([]byte, error) {
	if err := checkHeader(image); err != nil {
		return nil, err
	}
	sectors := int64(image[offSetupSects])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(image[offPayloadOffset:]))
	length := int64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if length < 8 || start+length > int64(len(image)) {
		return nil, fmt.Errorf("payload of %d bytes at %d is outside of the file: %w", length, start, errdefs.ErrInvalidArgument)
	}
	payload := image[start : start+length]
	// The last four bytes are the size of the kernel: gzip's own trailer, appended for the others.
	size := int64(binary.LittleEndian.Uint32(payload[length-4:]))
	if size > maxKernel {
		return nil, fmt.Errorf("kernel of %d MiB, at most %d are accepted: %w", size>>20, int64(maxKernel>>20), errdefs.ErrInvalidArgument)
	}
	vmlinux, err := decompressKernel(payload, size)
	switch {
	case err != nil:
		return nil, fmt.Errorf("decompress: %w: %w", err, errdefs.ErrInvalidArgument)
	case int64(len(vmlinux)) != size:
		return nil, fmt.Errorf("decompress: %d bytes came out instead of %d: %w", len(vmlinux), size, errdefs.ErrInvalidArgument)
	case !isELF(vmlinux):
		return nil, fmt.Errorf("the payload is not an ELF kernel: %w", errdefs.ErrInvalidArgument)
	}
	return vmlinux, nil
}

// decompressKernel goes by the magic number; size bounds what comes out.
func decompressKernel(payload []byte, size int64) ([]byte, error) {
	sized := payload[:len(payload)-4]
	switch {
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, err
		}
		return readBounded(r, size)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(bytes.NewReader(sized), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxKernel))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return readBounded(r, size)
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		return readLegacyLZ4(sized[4:], size)
	case bytes.HasPrefix(payload, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, x86, err := xzReader(sized)
		if err != nil {
			return nil, err
		}
		out, err := readBounded(r, size)
		if err == nil && x86 {
			undoX86Filter(out)
		}
		return out, err
	}
	return nil, fmt.Errorf("compression with the magic number % x is not known (gzip, zstd, lz4 and xz are)", payload[:6])
}

// readLegacyLZ4 reads the blocks of a legacy frame, each with its length before it.
func readLegacyLZ4(data []byte, size int64) ([]byte, error) {
	const block = 8 << 20
	out := make([]byte, 0, min(size, 4*int64(len(data))+block))
	buf := make([]byte, block)
	for len(data) > 0 {
		if len(data) < 4 {
			return nil, io.ErrUnexpectedEOF
		}
		n := binary.LittleEndian.Uint32(data)
		data = data[4:]
		if int64(n) > int64(len(data)) {
			return nil, io.ErrUnexpectedEOF
		}
		m, err := lz4.UncompressBlock(data[:n], buf)
		if err != nil {
			return nil, err
		}
		if int64(len(out)+m) > size {
			return nil, fmt.Errorf("larger than the %d bytes that it says", size)
		}
		out = append(out, buf[:m]...)
		data = data[n:]
	}
	return out, nil
}
