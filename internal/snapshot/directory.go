package snapshot

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// OpenDirectories opens the directory root for layers as directories that overlayfs can stack. root belongs to it until
// Close; what a process that died left unfinished is removed. FailedPrecondition when another process has it open.
func OpenDirectories(root string, source layerSource) (*Layers, error) {
	return open(root, source, form{what: "layer directories", version: ".v1", extension: ".dir", write: writeDirectory, open: openDirectory})
}

// writeDirectory is a form's write.
func writeDirectory(ctx context.Context, path string, open opener, inherit inheriter) (dependent bool, err error) {
	x, err := newExtractor(ctx, path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	if err := eachEntry(ctx, open, x.add); err != nil {
		return false, err
	}
	implied := x.tree.impliedDirs()
	if len(implied) > 0 {
		inherited, err := inherit(implied)
		if err != nil {
			return false, err
		}
		for _, e := range inherited {
			if err := x.setDir(e); err != nil {
				return false, x.explain(e, err)
			}
		}
	}
	if err := x.finish(); err != nil {
		return false, err
	}
	// One call for thousands of files.
	return len(implied) > 0, unix.Syncfs(x.root)
}

// extractor writes the entries of a layer as files below a directory that nobody else has the name of. What replaces
// an earlier entry replaces its file.
//
// tree has seen to it that what lies above an entry is a directory of this layer. That no link is followed holds
// without it: the kernel is told so for directories, and all else happens to the last part of a name.
type extractor struct {
	ctx   context.Context
	root  int // descriptor
	space *freeSpace
	tree  *tree
	times map[string]time.Time // of directories; set at the end, as each new file changes them

	dir    int    // descriptor of the directory that an entry was last written to; -1 for none
	dirAt  string // its name
	buffer []byte
}

// newExtractor makes the directory at, which must not exist.
func newExtractor(ctx context.Context, at string) (_ *extractor, err error) {
	if err := os.Mkdir(at, 0o700); err != nil {
		return nil, err
	}
	root, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: at, Err: err}
	}
	space, err := newFreeSpace(root)
	if err == nil {
		err = unix.Fchmod(root, 0o755)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(root))
	}
	t := newTree()
	t.relinks = true
	return &extractor{
		ctx: ctx, root: root, space: space, tree: t, times: map[string]time.Time{}, dir: -1, buffer: make([]byte, readBuffer),
	}, nil
}

func (x *extractor) close() error {
	x.leaveDir()
	return unix.Close(x.root)
}

// add writes entry number i.
func (x *extractor) add(i int, e *entry, body io.Reader) error {
	at := e.name
	if e.whiteout || e.opaque {
		at = e.target
	}
	old := x.tree.nodes[at].kind
	if err := x.tree.add(i, e); err != nil {
		return err
	}
	if err := x.write(i, e, at, old, body); err != nil {
		return x.explain(e, err)
	}
	return nil
}

func (x *extractor) write(i int, e *entry, at string, old nodeKind, body io.Reader) error {
	for _, dir := range x.tree.implied {
		if err := x.imply(dir, e.mtime); err != nil {
			return err
		}
	}
	switch {
	case x.tree.plan.skip[i]: // a whiteout of what this layer itself holds
		return nil
	case e.opaque:
		return x.setOpaque(at)
	case e.whiteout:
		return x.mknod(at, unix.S_IFCHR, 0)
	}
	if err := x.clear(at, old, e.kind); err != nil {
		return err
	}
	if e.kind == tar.TypeDir {
		if old != directory {
			if err := x.mkdir(at); err != nil {
				return err
			}
		}
		return x.setDir(e)
	}
	if err := x.space.use(blockSize); err != nil {
		return err
	}
	return x.writeFile(e, body)
}

// clear removes what an entry of a kind replaces.
func (x *extractor) clear(at string, old nodeKind, kind byte) error {
	switch {
	case old == absent, old == directory && kind == tar.TypeDir:
		return nil
	case old == directory:
		x.leaveDir()
		return os.RemoveAll(x.path(at))
	}
	return x.unlink(at)
}

// imply makes a directory that no entry has described so far.
func (x *extractor) imply(dir string, mtime time.Time) error {
	err := x.mkdir(dir)
	if errors.Is(err, unix.EEXIST) { // a whiteout
		if err := x.unlink(dir); err != nil {
			return err
		}
		err = x.mkdir(dir)
	}
	if err != nil {
		return err
	}
	return x.setDir(&entry{kind: tar.TypeDir, name: dir, mode: 0o755, mtime: mtime})
}

func (x *extractor) setDir(e *entry) error {
	x.times[e.name] = e.mtime
	return x.setAttributes(e)
}

func (x *extractor) setOpaque(dir string) error {
	return x.setXattr(dir, opaqueXattr, "y")
}

// finish does what is left for the end.
func (x *extractor) finish() error {
	for dir := range x.tree.plan.opaque {
		if x.tree.nodes[dir].kind != directory {
			continue
		}
		if err := x.setOpaque(dir); err != nil {
			return x.explain(&entry{name: dir}, err)
		}
	}
	for dir, mtime := range x.times {
		if x.tree.nodes[dir].kind != directory {
			continue
		}
		if err := x.setTime(dir, mtime); err != nil {
			return x.explain(&entry{name: dir}, err)
		}
	}
	return nil
}

// writeFile writes what is no directory.
func (x *extractor) writeFile(e *entry, body io.Reader) error {
	dir, base, err := x.split(e.name)
	if err != nil {
		return err
	}
	switch e.kind {
	case tar.TypeReg:
		return x.writeRegular(e, body)
	case tar.TypeLink:
		targetDir, target, err := x.openParent(e.link)
		if err != nil {
			return err
		}
		return errors.Join(unix.Linkat(targetDir, target, dir, base, 0), unix.Close(targetDir))
	case tar.TypeSymlink:
		err = unix.Symlinkat(e.link, dir, base)
	case tar.TypeFifo:
		err = x.mknod(e.name, unix.S_IFIFO, 0)
	case tar.TypeChar:
		err = x.mknod(e.name, unix.S_IFCHR, unix.Mkdev(uint32(e.major), uint32(e.minor)))
	case tar.TypeBlock:
		err = x.mknod(e.name, unix.S_IFBLK, unix.Mkdev(uint32(e.major), uint32(e.minor)))
	}
	if err != nil {
		return err
	}
	if err := x.setAttributes(e); err != nil {
		return err
	}
	return x.setTime(e.name, e.mtime)
}

func (x *extractor) writeRegular(e *entry, body io.Reader) (err error) {
	dir, base, err := x.split(e.name)
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), e.name)
	defer func() { err = errors.Join(err, file.Close()) }()
	out := &sparseFile{ctx: x.ctx, file: file, space: x.space}
	if n, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{body}, x.buffer); err != nil {
		return err
	} else if n != e.size {
		return damaged(io.ErrUnexpectedEOF)
	}
	if out.hole {
		if err := file.Truncate(out.end); err != nil {
			return err
		}
	}
	if err := unix.Fchown(fd, e.uid, e.gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(e.mode)); err != nil {
		return err
	}
	for name, value := range e.xattrs {
		if err := x.xattrError(name, unix.Fsetxattr(fd, name, []byte(value), 0)); err != nil {
			return err
		}
	}
	return x.setTime(e.name, e.mtime)
}

// setAttributes of what is no regular file. The order matters: a new owner takes away bits of the mode and capabilities.
func (x *extractor) setAttributes(e *entry) error {
	dir, base, err := x.split(e.name)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dir, base, e.uid, e.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.kind != tar.TypeSymlink {
		if err := unix.Fchmodat(dir, base, uint32(e.mode), 0); err != nil {
			return err
		}
	}
	for name, value := range e.xattrs {
		user, acl := strings.HasPrefix(name, "user."), strings.HasPrefix(name, aclPrefix)
		if (user && e.kind != tar.TypeDir) || (acl && e.kind == tar.TypeSymlink) {
			continue // the kernel shows it to nobody, on any file system
		}
		if err := x.setXattr(e.name, name, value); err != nil {
			return err
		}
	}
	return nil
}

func (x *extractor) setXattr(at, name, value string) error {
	dir, base, err := x.split(at)
	if err != nil {
		return err
	}
	return x.xattrError(name, unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dir, base), name, []byte(value), 0))
}

// xattrError tells an attribute that no file can have from a full file system, for which the kernel has one errno.
func (x *extractor) xattrError(name string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC):
		if full := x.space.check(); full != nil {
			return full
		}
	case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EPERM):
	case errors.Is(err, unix.ENOTSUP):
		return fmt.Errorf("the file system of the layers does not store the attribute %s: %w: %w", quote(name), err, errdefs.ErrFailedPrecondition)
	default:
		return err
	}
	return fmt.Errorf("attribute %s: %w: %w", quote(name), err, errdefs.ErrInvalidArgument)
}

func (x *extractor) setTime(at string, mtime time.Time) error {
	dir, base, err := x.split(at)
	if err != nil {
		return err
	}
	t, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return fmt.Errorf("time of modification: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return unix.UtimesNanoAt(dir, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
}

func (x *extractor) mkdir(at string) error {
	dir, base, err := x.split(at)
	if err != nil {
		return err
	}
	return unix.Mkdirat(dir, base, 0o700)
}

func (x *extractor) mknod(at string, kind uint32, device uint64) error {
	dir, base, err := x.split(at)
	if err != nil {
		return err
	}
	return unix.Mknodat(dir, base, kind, int(device))
}

func (x *extractor) unlink(at string) error {
	dir, base, err := x.split(at)
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, 0)
}

// path of an entry, where no call takes a descriptor.
func (x *extractor) path(at string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", x.root, at) }

// split opens the directory of a name. The descriptor is kept: entries mostly come directory by directory.
func (x *extractor) split(name string) (dir int, base string, err error) {
	if name == "" {
		return x.root, ".", nil
	}
	at := parent(name)
	if at == "" {
		return x.root, path.Base(name), nil
	}
	if x.dir < 0 || x.dirAt != at {
		dir, _, err := x.openParent(name)
		if err != nil {
			return 0, "", err
		}
		x.leaveDir()
		x.dir, x.dirAt = dir, at
	}
	return x.dir, path.Base(name), nil
}

// openParent opens the directory of a name, for the caller to close.
func (x *extractor) openParent(name string) (dir int, base string, err error) {
	at := parent(name)
	if at == "" {
		at = "."
	}
	dir, err = unix.Openat2(x.root, at, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	return dir, path.Base(name), err
}

func (x *extractor) leaveDir() {
	if x.dir >= 0 {
		_ = unix.Close(x.dir)
		x.dir = -1
	}
}

// explain says at which entry something failed.
func (x *extractor) explain(e *entry, err error) error {
	return fmt.Errorf("entry %s: %w", quote(e.name), err)
}
