package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	minScratch = 8 << 20 // bytes; below it the file system has no room for files
	maxScratch = 16 << 40
)

// NewScratch makes the file path: a sparse ext4 file system of sizeBytes for what a virtual machine writes. It has no
// journal, as it does not outlive its machine. sizeBytes is rounded up to whole blocks. The file must not exist;
// it belongs to the caller, who removes it.
func (l *Disks) NewScratch(ctx context.Context, path string, sizeBytes int64) (err error) {
	if sizeBytes < minScratch || sizeBytes > maxScratch {
		return fmt.Errorf("scratch disk of %d bytes: between %d MiB and %d TiB are possible: %w", sizeBytes, minScratch>>20, maxScratch>>40, errdefs.ErrInvalidArgument)
	}
	size := (sizeBytes + blockSize - 1) / blockSize * blockSize
	template, err := l.template(ctx, size)
	if err != nil {
		return fmt.Errorf("scratch disk %s: %w", path, classify(err))
	}
	defer template.Close()
	disk, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("scratch disk: %w: %w", err, errdefs.ErrAlreadyExists)
	} else if err != nil {
		return fmt.Errorf("scratch disk: %w", classify(err))
	}
	if err := errors.Join(copySparse(disk, template, size), disk.Close()); err != nil {
		return fmt.Errorf("scratch disk %s: %w", path, errors.Join(classify(err), os.Remove(path)))
	}
	return nil
}

// template opens an empty file system of a size, which is made once.
func (l *Disks) template(ctx context.Context, size int64) (*os.File, error) {
	l.templates.Lock()
	defer l.templates.Unlock()
	name := filepath.Join(l.root, fmt.Sprintf("scratch-%d", size))
	f, err := os.Open(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	temp, err := os.CreateTemp(l.root, tempPrefix+"*")
	if err != nil {
		return nil, err
	}
	err = errors.Join(temp.Truncate(size), mkfs(ctx, temp.Name()), temp.Sync())
	if err == nil {
		err = os.Rename(temp.Name(), name)
	}
	if err != nil {
		return nil, errors.Join(err, temp.Close(), os.Remove(temp.Name()))
	}
	return temp, nil
}

// formatter is the program that makes scratch disks.
const formatter = "mkfs.ext4"

// Ready is FailedPrecondition, and says what to do, where the program that NewScratch needs is not installed.
func Ready() error {
	if _, err := exec.LookPath(formatter); err != nil {
		return fmt.Errorf("%s is not installed, install e2fsprogs: %w", formatter, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// mkfs formats a file. Everything that can be left for later is: most machines write little.
func mkfs(ctx context.Context, path string) error {
	if err := Ready(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, formatter, "-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", path)
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// copySparse copies what is allocated of from, which has size bytes.
func copySparse(to, from *os.File, size int64) error {
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err == nil {
		return nil
	}
	if err := to.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole until the end
		} else if err != nil {
			return fmt.Errorf("find data: %w", err)
		}
		end, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("find holes: %w", err)
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, start), io.NewSectionReader(from, start, end-start)); err != nil {
			return err
		}
		at = end
	}
	return nil
}
