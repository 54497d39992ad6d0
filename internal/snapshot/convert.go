package snapshot

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/Microsoft/hcsshim/ext4/tar2ext4"
	"github.com/containerd/errdefs"
)

// Bounds on a layer. They are generous for real images, and keep a hostile one from exhausting memory, disk or time.
const (
	maxDiskBytes  = 256 << 30 // of the ext4 image
	maxTarBytes   = 256 << 30 // of the uncompressed tar
	maxFileBytes  = 32 << 30  // of one file; the converter's extent trees are right up to 42 GiB
	maxEntries    = 1 << 20   // files and directories, also those that are only implied
	maxNameBytes  = 4095
	maxNames      = 256 << 20 // of all names, which are kept in memory
	maxComponent  = 255
	readBuffer    = 256 << 10
	minFreeDivide = 20 // a conversion leaves 1/20 of the file system free
)

// convert writes a layer's tar as an ext4 image to disk. It returns the directories that the layer implies but does not
// describe; inherit is asked for their attributes.
//
// A layer in which an entry replaces an earlier one needs to be read twice more, as the converter cannot take back what
// it has written: open is called up to three times.
func convert(ctx context.Context, open opener, disk *os.File, inherit inheriter) ([]string, error) {
	implied, err := convertOnce(ctx, open, disk, plan{}, inherit)
	if !errors.Is(err, errReplaced) {
		return implied, err
	}
	p, err := scan(ctx, open)
	if err != nil {
		return nil, err
	}
	if implied, err = convertOnce(ctx, open, disk, p, inherit); errors.Is(err, errReplaced) {
		return nil, fmt.Errorf("%w, again in the second pass: %w", err, errdefs.ErrInternal)
	}
	return implied, err
}

func convertOnce(ctx context.Context, open opener, disk *os.File, p plan, inherit inheriter) (implied []string, err error) {
	if err := disk.Truncate(0); err != nil {
		return nil, err
	}
	raw, err := open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, raw.Close()) }()
	source := &boundedReader{ctx: ctx, r: raw, left: maxTarBytes}
	buffered := bufio.NewReaderSize(source, readBuffer)
	clean := newSanitizer(tar.NewReader(buffered), p, inherit)
	space, err := newFreeSpace(int(disk.Fd()))
	if err != nil {
		return nil, err
	}
	out := &sparseFile{ctx: ctx, file: disk, space: space}
	err = tar2ext4.ConvertTarToExt4(clean, out, tar2ext4.ConvertWhiteout, tar2ext4.MaximumDiskSize(maxDiskBytes))
	switch {
	case source.err != nil: // the cause, whatever became of it on its way
		return nil, source.err
	case clean.err != nil && !errors.Is(clean.err, io.EOF):
		return nil, clean.err
	case out.err != nil:
		return nil, out.err
	case err != nil:
		return nil, fmt.Errorf("entry %s: %w: %w", quote(clean.current), err, errdefs.ErrInvalidArgument)
	}
	// What follows the archive's end belongs to the digest, which is verified at the very end.
	if _, err := io.Copy(io.Discard, buffered); err != nil {
		return nil, err
	}
	return clean.tree.impliedDirs(), out.finish()
}

// boundedReader ends with its context, and refuses to read without end.
type boundedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
	err  error
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.err = b.ctx.Err(); b.err != nil {
		return 0, b.err
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	switch {
	case b.left < 0:
		b.err = fmt.Errorf("more than %d GiB uncompressed: %w", maxTarBytes>>30, errdefs.ErrInvalidArgument)
		return 0, b.err
	case err != nil && !errors.Is(err, io.EOF):
		b.err = err
	}
	return n, err
}
