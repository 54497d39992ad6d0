package snapshot

import (
	"archive/tar"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// What is read of ext4, as the converter writes it: blocks of 4 KiB, one table with all inodes, each directory in one piece.
const (
	inodeSize      = 256
	inodeUsed      = 152 // after that, attributes
	descriptorAt   = blockSize
	inodeTableAt   = 0x08 // in the first descriptor
	extentMagic    = 0xf30a
	xattrMagic     = 0xea020000
	xattrBlockHead = 32
	xattrEntryHead = 16
	dirEntryHead   = 8
	typeMask       = 0xf000
	typeDirectory  = 0x4000
	dirEntryIsDir  = 2
)

// errDisk is an ext4 image that does not hold what was written.
var errDisk = fmt.Errorf("the layer's disk is damaged: %w", errdefs.ErrInternal)

// diskLayer is a finished ext4 image. The numbers of its directories are those of their inodes.
type diskLayer struct {
	disk  *os.File
	table int64 // where the inodes are
}

// openDisk is a form's open.
func openDisk(path string) (lowerLayer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var table [4]byte
	if _, err := f.ReadAt(table[:], descriptorAt+inodeTableAt); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errDisk, err), f.Close())
	}
	return &diskLayer{disk: f, table: int64(binary.LittleEndian.Uint32(table[:])) * blockSize}, nil
}

func (l *diskLayer) Close() error { return l.disk.Close() }

// inode is that of a directory.
type inode [inodeSize]byte

func (l *diskLayer) inode(number uint32) (*inode, error) {
	var d inode
	if _, err := l.disk.ReadAt(d[:], l.table+(int64(number)-1)*inodeSize); err != nil {
		return nil, fmt.Errorf("%w: inode %d: %w", errDisk, number, err)
	}
	if d.u16(0)&typeMask != typeDirectory {
		return nil, fmt.Errorf("%w: inode %d", errDisk, number)
	}
	return &d, nil
}

func (d *inode) u16(at int) uint16 { return binary.LittleEndian.Uint16(d[at:]) }
func (d *inode) u32(at int) uint32 { return binary.LittleEndian.Uint32(d[at:]) }

func (l *diskLayer) children(number uint32, wanted *wish) (map[string]uint32, error) {
	const (
		extents = 0x28
		extent  = extents + 12
	)
	d, err := l.inode(number)
	if err != nil {
		return nil, err
	}
	size := int64(d.u32(0x04))
	if size == 0 || size%blockSize != 0 || d.u16(extents) != extentMagic || d.u16(extents+6) != 0 {
		return nil, fmt.Errorf("%w: a directory of %d bytes", errDisk, size)
	}
	found := map[string]uint32{}
	data := io.NewSectionReader(l.disk, int64(d.u32(extent+8))*blockSize, size)
	for block := make([]byte, blockSize); ; {
		if _, err := io.ReadFull(data, block); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, fmt.Errorf("%w: %w", errDisk, err)
		}
		if err := entries(block, wanted.below, found); err != nil {
			return nil, err
		}
	}
}

// entries adds what a block of a directory has of names.
func entries(block []byte, names map[string]*wish, found map[string]uint32) error {
	for len(block) > 0 {
		if len(block) < dirEntryHead {
			return errDisk
		}
		number, length, nameLength := binary.LittleEndian.Uint32(block), int(binary.LittleEndian.Uint16(block[4:])), int(block[6])
		if length < dirEntryHead+nameLength || length > len(block) {
			return errDisk
		}
		name := string(block[dirEntryHead : dirEntryHead+nameLength])
		switch {
		case names[name] == nil, number == 0:
		case block[7] == dirEntryIsDir:
			found[name] = number
		default:
			found[name] = noDirectory
		}
		block = block[length:]
	}
	return nil
}

func (l *diskLayer) attributes(number uint32, _ string) (*entry, error) {
	d, err := l.inode(number)
	if err != nil {
		return nil, err
	}
	e := &entry{kind: tar.TypeDir, mode: int64(d.u16(0) & modeMask)}
	e.uid, e.gid = int(uint32(d.u16(0x02))|uint32(d.u16(0x78))<<16), int(uint32(d.u16(0x18))|uint32(d.u16(0x7a))<<16)
	const epochBits = 2
	extra := d.u32(0x88)
	e.mtime = time.Unix(int64(uint64(d.u32(0x10))|uint64(extra&(1<<epochBits-1))<<32), int64(extra>>epochBits))
	e.xattrs = map[string]string{}
	if inline := d[inodeUsed:]; binary.LittleEndian.Uint32(inline) == xattrMagic {
		if err := readXattrs(inline[4:], inline[4:], e.xattrs); err != nil {
			return nil, err
		}
	}
	if at := d.u32(0x68); at != 0 {
		block := make([]byte, blockSize)
		if _, err := l.disk.ReadAt(block, int64(at)*blockSize); err != nil {
			return nil, fmt.Errorf("%w: %w", errDisk, err)
		}
		if err := readXattrs(block[xattrBlockHead:], block, e.xattrs); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// xattrClass is the beginning of a name for which ext4 stores a number.
func xattrClass(index byte) string {
	switch index {
	case 1:
		return "user."
	case 2:
		return aclPrefix + "access"
	case 3:
		return aclPrefix + "default"
	case 4:
		return "trusted."
	case 6:
		return "security."
	}
	return ""
}

// readXattrs reads a list of attributes, whose values lie in values.
func readXattrs(list, values []byte, into map[string]string) error {
	// The list ends with four zeros; an access control list's name is empty.
	for len(list) >= xattrEntryHead && binary.LittleEndian.Uint32(list) != 0 {
		nameLength, at, length := int(list[0]), uint64(binary.LittleEndian.Uint16(list[2:])), uint64(binary.LittleEndian.Uint32(list[8:]))
		next := xattrEntryHead + (nameLength+3)&^3
		class := xattrClass(list[1])
		if next > len(list) || at+length > uint64(len(values)) || class == "" {
			return errDisk
		}
		name, value := class+string(list[xattrEntryHead:xattrEntryHead+nameLength]), string(values[at:at+length])
		if strings.HasPrefix(name, aclPrefix) {
			var err error
			if value, err = readACL(value); err != nil {
				return err
			}
		}
		into[name], list = value, list[next:]
	}
	return nil
}
