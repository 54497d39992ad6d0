package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Names of what is deleted in the archive of a layer.
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"

	opaqueAttr    = "trusted.overlay.opaque"
	overlayPrefix = "trusted.overlay."
	attrRecord    = "SCHILY.xattr."
	// maxAttr is the kernel's limit of an attribute, and of the list of their names.
	maxAttr = 64 << 10
)

// Work makes a directory for temporary files in that of a root, which the caller removes; at the latest it goes with the root.
func (r *Roots) Work(id string) (string, error) {
	if err := checkID(id); err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(filepath.Join(r.dir, id), "work-")
	if err != nil {
		return "", fmt.Errorf("root of %s: %w", id, classify(err))
	}
	return dir, nil
}

// Diff writes what a container has written to its root, and deleted there, as the archive of an image's layer. It may be
// called while the container runs; sockets are left out, as archives know none. NotFound for an unknown id, ResourceExhausted
// for a full disk and for directories that are nested too deep.
func (r *Roots) Diff(ctx context.Context, id string, to io.Writer) error {
	if err := checkID(id); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Join(r.dir, id, data, upper))
	if err != nil {
		return fmt.Errorf("what was written to the root of %s: %w", id, classify(err))
	}
	d := differ{ctx: ctx, archive: tar.NewWriter(to), linked: map[uint64]string{}}
	if err := errors.Join(d.walk(dir, "", 0), d.archive.Close(), dir.Close()); err != nil {
		return fmt.Errorf("what was written to the root of %s: %w", id, classify(err))
	}
	return nil
}

// differ writes a tree into an archive.
type differ struct {
	ctx     context.Context
	archive *tar.Writer
	linked  map[uint64]string // inodes with several names, and the first of these
}

// walk writes what is in a directory. Files may come and go.
func (d *differ) walk(dir *os.File, prefix string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories are nested deeper than %d: %w", maxDepth, unix.ENOSPC)
	}
	for {
		names, err := dir.Readdirnames(batch)
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		for _, name := range names {
			if err := d.ctx.Err(); err != nil {
				return err
			}
			if err := d.entry(dir, prefix, name, depth); err != nil && !vanished(err) {
				return fmt.Errorf("%q: %w", path.Join(prefix, name), err)
			}
		}
	}
}

// vanished: it was removed or replaced in the meantime.
func vanished(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func (d *differ) entry(dir *os.File, prefix, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	h, err := d.header(dir, path.Join(prefix, name), &st)
	if err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return d.directory(dir, name, h, depth)
	case unix.S_IFREG:
		return d.regular(dir, name, h)
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(filepath.Join(fdPath(dir), name)); err != nil {
			return err
		}
	case unix.S_IFCHR:
		if st.Rdev == 0 { // it hides what is below
			return d.archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(prefix, whiteout+name)})
		}
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFBLK:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil
	}
	return d.archive.WriteHeader(h)
}

// header is what all kinds of files have.
func (d *differ) header(dir *os.File, name string, st *unix.Stat_t) (*tar.Header, error) {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), PAXRecords: map[string]string{}, Format: tar.FormatPAX,
	}
	at := filepath.Join(fdPath(dir), path.Base(name))
	list := make([]byte, maxAttr)
	n, err := unix.Llistxattr(at, list)
	if errors.Is(err, unix.ENOTSUP) {
		return h, nil
	} else if err != nil {
		return nil, err
	}
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if attr == "" || strings.HasPrefix(attr, overlayPrefix) || strings.Contains(attr, "=") {
			continue // overlayfs' own, and what a record cannot name
		}
		value := make([]byte, maxAttr)
		n, err := unix.Lgetxattr(at, attr, value)
		if errors.Is(err, unix.ENODATA) {
			continue // it was removed in the meantime
		} else if err != nil {
			return nil, err
		}
		h.PAXRecords[attrRecord+attr] = string(value[:n])
	}
	return h, nil
}

func (d *differ) directory(dir *os.File, name string, h *tar.Header, depth int) error {
	sub, err := beneath(dir, name)
	if err != nil {
		return err
	}
	defer sub.Close()
	in := h.Name
	h.Typeflag, h.Name = tar.TypeDir, in+"/"
	if err := d.archive.WriteHeader(h); err != nil {
		return err
	}
	value := make([]byte, 1)
	if n, err := unix.Fgetxattr(int(sub.Fd()), opaqueAttr, value); err == nil && n == 1 && value[0] == 'y' {
		if err := d.archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(in, opaque)}); err != nil {
			return err
		}
	}
	return d.walk(sub, in, depth+1)
}

// regular writes a file's content, or which file it is another name of.
func (d *differ) regular(dir *os.File, name string, h *tar.Header) error {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil // it was replaced in the meantime
	}
	if st.Nlink > 1 {
		if first, again := d.linked[st.Ino]; again {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			return d.archive.WriteHeader(h)
		}
		d.linked[st.Ino] = h.Name
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := d.archive.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(d.archive, io.LimitReader(contextReader{d.ctx, f}, st.Size))
	if err != nil {
		return err
	}
	// It was cut in the meantime: what is missing reads as zeros.
	_, err = io.CopyN(d.archive, zeros{}, st.Size-n)
	return err
}

// contextReader ends with a context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
