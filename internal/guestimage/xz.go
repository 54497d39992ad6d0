package guestimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ulikunitz/xz/lzma"
)

// maxXZDictionary is what the kernel's own build uses at most (xz -9e), and the most that is allocated.
const maxXZDictionary = 64 << 20

// Filters of the xz format.
const (
	xzFilterX86   = 0x04
	xzFilterLZMA2 = 0x21
)

// xzReader reads the first block of an xz stream. It exists beside a whole xz library because of two things:
// kernels go through the x86 filter, and the dictionary that a file asks for must be bounded. Checksums are not
// compared: a kernel's size and ELF header are checked after it.
func xzReader(data []byte) (r io.Reader, x86 bool, err error) {
	const streamHeader = 12
	if len(data) < streamHeader+2 {
		return nil, false, io.ErrUnexpectedEOF
	}
	length := (int(data[streamHeader]) + 1) * 4
	if len(data) < streamHeader+length || data[streamHeader] == 0 {
		return nil, false, io.ErrUnexpectedEOF
	}
	header := bytes.NewReader(data[streamHeader+1 : streamHeader+length-4])
	flags, err := header.ReadByte()
	if err != nil {
		return nil, false, err
	}
	for _, present := range []byte{0x40, 0x80} { // compressed and uncompressed size
		if flags&present != 0 {
			if _, err := binary.ReadUvarint(header); err != nil {
				return nil, false, err
			}
		}
	}
	for range int(flags&3) + 1 {
		id, properties, err := xzFilter(header)
		switch {
		case err != nil:
			return nil, false, err
		case id == xzFilterX86 && len(properties) == 0:
			x86 = true
		case id == xzFilterLZMA2 && len(properties) == 1:
			size, err := lzma.DecodeDictCap(properties[0])
			if err != nil {
				return nil, false, err
			}
			if size > maxXZDictionary {
				return nil, false, fmt.Errorf("xz dictionary of %d MiB, at most %d are accepted", size>>20, maxXZDictionary>>20)
			}
			r, err = lzma.Reader2Config{DictCap: int(max(size, lzma.MinDictCap))}.NewReader2(bytes.NewReader(data[streamHeader+length:]))
			return r, x86, err
		default:
			return nil, false, fmt.Errorf("xz filter %#x is not known", id)
		}
	}
	return nil, false, errors.New("xz: no lzma2 filter")
}

func xzFilter(r *bytes.Reader) (id uint64, properties []byte, err error) {
	if id, err = binary.ReadUvarint(r); err != nil {
		return 0, nil, err
	}
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return 0, nil, err
	}
	if n > uint64(r.Len()) {
		return 0, nil, io.ErrUnexpectedEOF
	}
	properties = make([]byte, n)
	_, err = io.ReadFull(r, properties)
	return id, properties, err
}

// undoX86Filter turns the absolute targets of calls and jumps, which compress better, back into relative ones.
// What the filter took for an instruction depends on the opcode bytes among the four before it: opcodes has a
// bit for each, the nearest lowest; likely says that the last of them had a plausible target.
func undoX86Filter(data []byte) {
	var (
		plausible = func(b byte) bool { return b == 0 || b == 0xff }
		// By the opcodes one to three bytes back: whether the filter then looked at all, and which byte of the
		// target overlaps with the earlier instruction.
		considered = [8]bool{true, true, true, false, true, false, false, false}
		overlap    = [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
		mask       uint32
		last       = -5
	)
	for i := 0; i+5 <= len(data); {
		if data[i]&0xfe != 0xe8 {
			i++
			continue
		}
		if distance := i - last; distance > 5 {
			mask = 0
		} else {
			for range distance {
				mask = mask & 0x77 << 1
			}
		}
		last = i
		top := data[i+4]
		if !plausible(top) || mask>>1 >= 0x10 || !considered[mask>>1&7] {
			mask |= 1
			if plausible(top) {
				mask |= 0x10
			}
			i++
			continue
		}
		target := binary.LittleEndian.Uint32(data[i+1:])
		relative := target - uint32(i+5)
		for mask != 0 {
			shift := overlap[mask>>1] * 8
			if !plausible(byte(relative >> (24 - shift))) {
				break
			}
			target = relative ^ (1<<(32-shift) - 1)
			relative = target - uint32(i+5)
		}
		relative &= 0x1ffffff
		if relative&0x1000000 != 0 {
			relative |= 0xff000000
		}
		binary.LittleEndian.PutUint32(data[i+1:], relative)
		mask = 0
		i += 5
	}
}
