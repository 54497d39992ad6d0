package snapshot

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
)

// Disks are layers as read-only ext4 images, and empty writable disks.
type Disks struct {
	*Layers
	templates sync.Mutex // one new scratch template at a time
}

// OpenDisks opens the directory root, which it owns until Close, and removes what a process that died left unfinished.
// FailedPrecondition when another process has it open.
func OpenDisks(root string, source layerSource) (*Disks, error) {
	l, err := open(root, source, form{what: "layer disks", version: ".v1", extension: ".ext4", write: writeDisk, whole: wholeDisk, open: openDisk})
	if err != nil {
		return nil, err
	}
	return &Disks{Layers: l}, nil
}

// The ext4 superblock, as far as it says how long the file system is.
const (
	superblockAt   = 1024
	superblockSize = 1024
	superblockLog  = 0x18 // of the block size, less 10
	superblockTag  = 0x38
	blocksLow      = 0x04
	blocksHigh     = 0x150
	ext4Tag        = 0xef53
	maxBlockLog    = 6
)

// wholeDisk is a form's whole: the file must be as long as the file system in it says.
func wholeDisk(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	var b [superblockSize]byte
	if _, err := f.ReadAt(b[:], superblockAt); errors.Is(err, io.EOF) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	le := binary.LittleEndian
	log := le.Uint32(b[superblockLog:])
	if le.Uint16(b[superblockTag:]) != ext4Tag || log > maxBlockLog {
		return false, nil
	}
	blocks := uint64(le.Uint32(b[blocksHigh:]))<<32 | uint64(le.Uint32(b[blocksLow:]))
	return blocks <= uint64(info.Size())>>(10+log), nil
}

// writeDisk is a form's write.
func writeDisk(ctx context.Context, path string, open opener, inherit inheriter) (dependent bool, err error) {
	disk, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	// VMMs are users of their own, and some open the disks that they are shown. Nobody else gets as far as here: the
	// directory is root's alone.
	if err := disk.Chmod(0o644); err != nil {
		return false, err
	}
	implied, err := convert(ctx, open, disk, inherit)
	if err != nil {
		return false, err
	}
	return len(implied) > 0, disk.Sync()
}
