package share

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// adopt gives what was just made to the process that asked for it, and the guest its node. The server makes files as
// root: whether the guest's process may is for the guest's kernel to say.
func (f *files) adopt(dir *used, name string, caller fuse.Owner, mode uint32, out *fuse.EntryOut) fuse.Status {
	uid, gid := int(caller.Uid), int(caller.Gid)
	var parent unix.Stat_t
	if err := unix.Fstat(dir.fd, &parent); err != nil {
		return status(err)
	}
	if parent.Mode&unix.S_ISGID != 0 {
		gid = -1 // it has the directory's
	}
	if err := unix.Fchownat(dir.fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return status(err)
	}
	format, code := f.entry(dir, name, out)
	if !code.Ok() || mode&(unix.S_ISUID|unix.S_ISGID) == 0 || format != unix.S_IFREG {
		return code
	}
	// The change of the owner took these bits.
	n := f.nodes.use(out.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	if err := unix.Fchmodat(unix.AT_FDCWD, procPath(f.proc, n.fd), mode&0o7777, 0); err != nil {
		return status(err)
	}
	out.Mode = unix.S_IFREG | mode&0o7777
	return fuse.OK
}

// undo removes what could not be given to its owner.
func undo(dir *used, name string, flags int, code fuse.Status) fuse.Status {
	if !code.Ok() {
		_ = unix.Unlinkat(dir.fd, name, flags) // the first error is the one to tell
	}
	return code
}

// Mknod implements fuse.RawFileSystem: regular files, FIFOs and sockets. A device would be one of the host.
func (f *files) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, code := f.directory(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer dir.release()
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return fuse.EPERM
	}
	if err := unix.Mknodat(dir.fd, name, in.Mode, 0); err != nil {
		return status(err)
	}
	return undo(dir, name, 0, f.adopt(dir, name, in.Owner, in.Mode, out))
}

// Mkdir implements fuse.RawFileSystem.
func (f *files) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, code := f.directory(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer dir.release()
	if err := unix.Mkdirat(dir.fd, name, in.Mode&0o7777); err != nil {
		return status(err)
	}
	return undo(dir, name, unix.AT_REMOVEDIR, f.adopt(dir, name, in.Owner, 0, out))
}

// Symlink implements fuse.RawFileSystem. The target is text: nobody on the host follows it.
func (f *files) Symlink(_ <-chan struct{}, header *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	dir, code := f.directory(header.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer dir.release()
	if len(target) > maxTarget {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	if err := unix.Symlinkat(target, dir.fd, name); err != nil {
		return status(err)
	}
	return undo(dir, name, 0, f.adopt(dir, name, header.Owner, 0, out))
}

// Link implements fuse.RawFileSystem.
func (f *files) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, code := f.directory(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer dir.release()
	n := f.nodes.use(in.Oldnodeid)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	if err := unix.Linkat(unix.AT_FDCWD, procPath(f.proc, n.fd), dir.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return status(err)
	}
	_, code = f.entry(dir, name, out)
	return code
}

// Unlink implements fuse.RawFileSystem.
func (f *files) Unlink(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return f.unlink(header.NodeId, name, 0)
}

// Rmdir implements fuse.RawFileSystem.
func (f *files) Rmdir(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return f.unlink(header.NodeId, name, unix.AT_REMOVEDIR)
}

func (f *files) unlink(id uint64, name string, flags int) fuse.Status {
	dir, code := f.directory(id, name)
	if !code.Ok() {
		return code
	}
	defer dir.release()
	return status(unix.Unlinkat(dir.fd, name, flags))
}

// Rename implements fuse.RawFileSystem.
func (f *files) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL // a whiteout is a device node
	}
	from, code := f.directory(in.NodeId, oldName)
	if !code.Ok() {
		return code
	}
	defer from.release()
	to, code := f.directory(in.Newdir, newName)
	if !code.Ok() {
		return code
	}
	defer to.release()
	if err := unix.Renameat2(from.fd, oldName, to.fd, newName, uint(in.Flags)); err != nil {
		return status(err)
	}
	f.nodes.moved(to, newName)
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		f.nodes.moved(from, oldName)
	}
	return fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (f *files) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	return f.xattr(in.NodeId, name, func(path string) error {
		return unix.Setxattr(path, name, data[:min(int(in.Size), len(data))], int(in.Flags))
	})
}

// RemoveXAttr implements fuse.RawFileSystem.
func (f *files) RemoveXAttr(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return f.xattr(header.NodeId, name, func(path string) error { return unix.Removexattr(path, name) })
}

// GetXAttr implements fuse.RawFileSystem.
func (f *files) GetXAttr(_ <-chan struct{}, header *fuse.InHeader, name string, dest []byte) (size uint32, code fuse.Status) {
	code = f.xattr(header.NodeId, name, func(path string) error {
		n, err := unix.Getxattr(path, name, dest)
		size = uint32(max(n, 0))
		return err
	})
	return size, code
}

// ListXAttr implements fuse.RawFileSystem.
func (f *files) ListXAttr(_ <-chan struct{}, header *fuse.InHeader, dest []byte) (size uint32, code fuse.Status) {
	code = f.withPath(header.NodeId, func(path string) error {
		n, err := unix.Listxattr(path, dest)
		size = uint32(max(n, 0))
		return err
	})
	return size, code
}

// xattr does something with an attribute that a guest may have. Access control lists would need the guest's kernel to
// enforce them, and labels are the host's policy.
func (f *files) xattr(id uint64, name string, do func(path string) error) fuse.Status {
	switch {
	case name == "" || len(name) > maxName:
		return fuse.ERANGE
	case name == "system.posix_acl_access" || name == "system.posix_acl_default":
		return fuse.Status(unix.EOPNOTSUPP)
	case name == "security.selinux" || name == "security.ima" || name == "security.evm":
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return f.withPath(id, do)
}

func (f *files) withPath(id uint64, do func(path string) error) fuse.Status {
	n := f.nodes.use(id)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	return status(do(procPath(f.proc, n.fd)))
}
