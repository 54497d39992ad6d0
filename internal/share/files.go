package share

import (
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	maxName   = 255
	maxTarget = 4095
	// openFlags are those of open(2) that mean something to the host's file; the others are the guest's own affair.
	openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC
)

// files answers the requests for one share. It never resolves a path of more than one name, follows no symbolic link
// and opens only regular files and directories: whatever the guest makes there, it stays there.
type files struct {
	fuse.RawFileSystem // ENOSYS for what is not here
	nodes              *nodes
	handles            *handles
	// proc is a directory with a link for each descriptor of this process.
	proc string
	// valid is how long the guest may believe names and attributes.
	valid time.Duration
	// tells: the file system reports errors when a file is closed, as those on other machines do.
	tells bool
	// ahead: the guest gets a directory's attributes with the answer to what has changed them.
	ahead bool
	// live are devices whose files the kernel makes when they are read; those that were not asked for are not in it.
	live sync.Map
}

// madeByKernel tells an open file of /proc, /sys and their like. Its size says nothing, and what was read of it before may have changed.
func (f *files) madeByKernel(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return false
	}
	if live, ok := f.live.Load(st.Dev); ok {
		return live.(bool)
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return false
	}
	live := false
	switch fs.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC,
		unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC:
		live = true
	}
	f.live.Store(st.Dev, live)
	return live
}

// newFiles takes over root, an O_PATH descriptor.
func newFiles(root int, proc string, valid time.Duration, room *budget) (*files, error) {
	table, err := newNodes(root, room)
	if err != nil {
		return nil, err
	}
	return &files{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), nodes: table, handles: &handles{open: map[uint64]*handle{}}, proc: proc, valid: valid,
		tells: true,
	}, nil
}

func (f *files) close() {
	f.handles.close()
	f.nodes.close()
}

// String implements fuse.RawFileSystem.
func (f *files) String() string { return "share" }

// validName accepts what can be an entry of a directory.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= maxName && !strings.ContainsAny(name, "/\x00")
}

func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	// EFAULT is memory in common with the guest that somebody has cut.
	if errno, ok := err.(syscall.Errno); ok && errno != unix.EFAULT {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

func (f *files) attr(st *unix.Statx_t, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino: f.nodes.inode(unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino), Size: st.Size, Blocks: st.Blocks, Blksize: st.Blksize,
		Atime: uint64(st.Atime.Sec), Atimensec: st.Atime.Nsec, Mtime: uint64(st.Mtime.Sec), Mtimensec: st.Mtime.Nsec,
		Ctime: uint64(st.Ctime.Sec), Ctimensec: st.Ctime.Nsec, Mode: uint32(st.Mode), Nlink: st.Nlink,
		Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid}, Rdev: uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor)),
	}
}

// entry looks a name up and gives the guest the node.
func (f *files) entry(dir *used, name string, out *fuse.EntryOut) (format uint32, code fuse.Status) {
	fd, st, err := lookup(dir.fd, name)
	if err != nil {
		return 0, status(err)
	}
	*out = fuse.EntryOut{NodeId: f.nodes.add(fd, &st, dir.id, name), Generation: 1}
	out.SetEntryTimeout(f.valid)
	out.SetAttrTimeout(f.valid)
	f.attr(&st, &out.Attr)
	return uint32(st.Mode) & unix.S_IFMT, fuse.OK
}

// again gives the guest a node that it has already, whatever has become of its name; false where that is not possible.
func (f *files) again(id uint64, out *fuse.EntryOut) bool {
	n := f.nodes.retain(id)
	if n == nil {
		return false
	}
	defer n.release()
	var st unix.Statx_t
	if err := statx(n.fd, &st); err != nil {
		f.nodes.forget(id, 1)
		return false
	}
	*out = fuse.EntryOut{NodeId: id, Generation: 1}
	f.attr(&st, &out.Attr)
	return true
}

// directory finds the node of a directory in which name is to be found or made.
func (f *files) directory(id uint64, name string) (*used, fuse.Status) {
	if len(name) > maxName {
		return nil, fuse.Status(unix.ENAMETOOLONG)
	}
	if !validName(name) {
		return nil, fuse.EINVAL
	}
	n := f.nodes.use(id)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	if n.format != unix.S_IFDIR {
		n.release()
		return nil, fuse.ENOTDIR
	}
	return n, fuse.OK
}

// Lookup implements fuse.RawFileSystem.
func (f *files) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, code := f.directory(header.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer dir.release()
	_, code = f.entry(dir, name, out)
	return code
}

// Forget implements fuse.RawFileSystem.
func (f *files) Forget(id, lookups uint64) { f.nodes.forget(id, lookups) }

// GetAttr implements fuse.RawFileSystem.
func (f *files) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	var file *descriptor
	if n := f.nodes.use(in.NodeId); n != nil {
		file = n.descriptor
	} else if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		if h := f.handles.use(in.Fh()); h != nil {
			file = h.descriptor // it has no name any more
		}
	}
	if file == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer file.release()
	return f.getAttr(file, out)
}

func (f *files) getAttr(n *descriptor, out *fuse.AttrOut) fuse.Status {
	var st unix.Statx_t
	if err := statx(n.fd, &st); err != nil {
		return status(err)
	}
	out.SetTimeout(f.valid)
	f.attr(&st, &out.Attr)
	return fuse.OK
}

// SetAttr implements fuse.RawFileSystem.
func (f *files) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.nodes.use(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	// The owner first: changing it takes the set-user-ID bit away, which the mode may set.
	for _, step := range []func(*used, *fuse.SetAttrIn) error{f.setOwner, f.setMode, f.setSize, f.setTimes} {
		if err := step(n, in); err != nil {
			return status(err)
		}
	}
	return f.getAttr(n.descriptor, out)
}

func (f *files) setOwner(n *used, in *fuse.SetAttrIn) error {
	uid, gid := -1, -1
	if in.Valid&fuse.FATTR_UID != 0 {
		uid = int(in.Uid)
	}
	if in.Valid&fuse.FATTR_GID != 0 {
		gid = int(in.Gid)
	}
	if uid == -1 && gid == -1 {
		return nil
	}
	return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

func (f *files) setMode(n *used, in *fuse.SetAttrIn) error {
	if in.Valid&fuse.FATTR_MODE == 0 {
		return nil
	}
	if n.format == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Fchmodat(unix.AT_FDCWD, procPath(f.proc, n.fd), in.Mode&0o7777, 0)
}

func (f *files) setSize(n *used, in *fuse.SetAttrIn) error {
	if in.Valid&fuse.FATTR_SIZE == 0 {
		return nil
	}
	if n.format != unix.S_IFREG {
		return unix.EINVAL
	}
	fd, done, err := f.writable(n, in)
	if err != nil {
		return err
	}
	defer done()
	if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := dropSetID(fd); err != nil {
			return err
		}
	}
	return unix.Ftruncate(fd, int64(in.Size))
}

// writable is the file that a size is set through: the guest's own open one where it names it.
func (f *files) writable(n *used, in *fuse.SetAttrIn) (fd int, done func(), err error) {
	if in.Valid&fuse.FATTR_FH != 0 {
		if h := f.handles.use(in.Fh); h != nil {
			return h.fd, h.release, nil
		}
		return 0, nil, unix.EBADF
	}
	fd, err = f.reopen(n, unix.O_WRONLY)
	return fd, func() { unix.Close(fd) }, err
}

func (f *files) setTimes(n *used, in *fuse.SetAttrIn) error {
	const atime, mtime = fuse.FATTR_ATIME | fuse.FATTR_ATIME_NOW, fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW
	if in.Valid&(atime|mtime) == 0 {
		return nil
	}
	stamp := func(set, now uint32, sec uint64, nsec uint32) unix.Timespec {
		switch {
		case in.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		case in.Valid&set != 0:
			return unix.Timespec{Sec: int64(sec), Nsec: int64(min(nsec, 999_999_999))}
		}
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	times := []unix.Timespec{
		stamp(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		stamp(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(f.proc, n.fd), times, 0)
}

// reopen opens a node for I/O: regular files and directories, and nothing else.
func (f *files) reopen(n *used, flags int) (int, error) {
	switch n.format {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		flags |= unix.O_DIRECTORY
	case unix.S_IFLNK:
		return -1, unix.ELOOP
	default:
		return -1, unix.ENXIO
	}
	return unix.Open(procPath(f.proc, n.fd), flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
}

// dropSetID takes the set-user-ID and set-group-ID bits away, as the kernel does when a file changes.
func dropSetID(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	bits := uint32(unix.S_ISUID)
	if st.Mode&unix.S_IXGRP != 0 {
		bits |= unix.S_ISGID
	}
	if st.Mode&bits == 0 {
		return nil
	}
	return unix.Fchmod(fd, st.Mode&0o7777&^bits)
}

// Readlink implements fuse.RawFileSystem.
func (f *files) Readlink(_ <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	n := f.nodes.use(header.NodeId)
	if n == nil {
		return nil, fuse.Status(unix.ESTALE)
	}
	defer n.release()
	buf := make([]byte, maxTarget+1)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err == unix.ENOENT {
		err = unix.EINVAL // what readlinkat says of a descriptor that is no link
	}
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], fuse.OK
}

// StatFs implements fuse.RawFileSystem.
func (f *files) StatFs(_ <-chan struct{}, header *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n := f.nodes.use(header.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(n.fd, &st); err != nil {
		return status(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}
