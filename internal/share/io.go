package share

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Open implements fuse.RawFileSystem.
func (f *files) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.nodes.use(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	if n.format == unix.S_IFDIR {
		return fuse.Status(unix.EISDIR)
	}
	return f.open(n, in.Flags, in.Mode, out)
}

// open opens a regular file. What the guest's open(2) leaves to the host is the access mode, appending, truncation
// and synchronous writing.
func (f *files) open(n *used, flags, fuseFlags uint32, out *fuse.OpenOut) fuse.Status {
	fd, err := f.reopen(n, int(flags)&openFlags)
	if err != nil {
		return status(err)
	}
	if flags&unix.O_TRUNC != 0 && fuseFlags&fuse.OPEN_KILL_SUIDGID != 0 {
		if err := dropSetID(fd); err != nil {
			unix.Close(fd)
			return status(err)
		}
	}
	if f.madeByKernel(fd) {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	out.Fh = f.handles.add(fd, nil)
	return fuse.OK
}

// Create implements fuse.RawFileSystem: it makes a file, or opens what somebody made in the meantime.
func (f *files) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir, code := f.directory(in.NodeId, name)
	if !code.Ok() {
		return code
	}
	defer dir.release()
	// Made without opening it, so that an access mode which the file's mode forbids is possible.
	err := unix.Mknodat(dir.fd, name, unix.S_IFREG|in.Mode&0o7777, 0)
	switch {
	case err == nil:
		code = undo(dir, name, 0, f.adopt(dir, name, in.Owner, in.Mode, &out.EntryOut))
	case err == unix.EEXIST && in.Flags&unix.O_EXCL == 0:
		_, code = f.entry(dir, name, &out.EntryOut)
	default:
		code = status(err)
	}
	if !code.Ok() {
		return code
	}
	n := f.nodes.use(out.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	if code = f.open(n, in.Flags, in.OpenFlags, &out.OpenOut); !code.Ok() {
		f.nodes.forget(out.NodeId, 1)
	}
	return code
}

// Read implements fuse.RawFileSystem.
func (f *files) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := f.handles.use(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	defer h.release()
	n, err := unix.Pread(h.fd, buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (f *files) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := f.handles.use(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	defer h.release()
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := dropSetID(h.fd); err != nil {
			return 0, status(err)
		}
	}
	data = data[:min(int(in.Size), len(data))]
	var written int
	for written < len(data) {
		n, err := unix.Pwrite(h.fd, data[written:], int64(in.Offset)+int64(written))
		if err != nil && written == 0 {
			return 0, status(err)
		}
		if err != nil || n == 0 {
			break
		}
		written += n
	}
	return uint32(written), fuse.OK
}

// Release implements fuse.RawFileSystem.
func (f *files) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.handles.remove(in.Fh) }

// withHandle does something with an open file.
func (f *files) withHandle(id uint64, do func(fd int) error) fuse.Status {
	h := f.handles.use(id)
	if h == nil {
		return fuse.EBADF
	}
	defer h.release()
	return status(do(h.fd))
}

// Flush implements fuse.RawFileSystem: errors that a file system reports at close reach the guest's close. Where there are
// none the guest is told not to ask, which saves it a message for each file that it closes.
func (f *files) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	if !f.tells {
		return fuse.ENOSYS
	}
	return f.withHandle(in.Fh, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(dup)
	})
}

// Fsync implements fuse.RawFileSystem.
func (f *files) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.withHandle(in.Fh, func(fd int) error {
		if in.FsyncFlags&1 != 0 {
			return unix.Fdatasync(fd)
		}
		return unix.Fsync(fd)
	})
}

// FsyncDir implements fuse.RawFileSystem.
func (f *files) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return f.Fsync(cancel, in)
}

// Fallocate implements fuse.RawFileSystem.
func (f *files) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return f.withHandle(in.Fh, func(fd int) error {
		return unix.Fallocate(fd, in.Mode, int64(in.Offset), int64(in.Length))
	})
}

// Lseek implements fuse.RawFileSystem: it finds data and holes. A directory's position is the server's own.
func (f *files) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	return f.withHandle(in.Fh, func(fd int) error {
		off, err := unix.Seek(fd, int64(in.Offset), int(in.Whence))
		out.Offset = uint64(off)
		return err
	})
}

// CopyFileRange implements fuse.RawFileSystem.
func (f *files) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (written uint32, code fuse.Status) {
	const most = 1 << 30 // the answer has 32 bits
	code = f.withHandle(in.FhIn, func(from int) error {
		var err error
		code := f.withHandle(in.FhOut, func(to int) error {
			var n int
			offIn, offOut := int64(in.OffIn), int64(in.OffOut)
			n, err = unix.CopyFileRange(from, &offIn, to, &offOut, int(min(in.Len, most)), 0)
			written = uint32(max(n, 0))
			return err
		})
		if err == nil && !code.Ok() {
			err = unix.EBADF
		}
		return err
	})
	return written, code
}

// listing is the place in a directory that is being read.
type listing struct {
	buf  []byte // what getdents returned and was not handed out yet
	next int64  // the offset of the first entry in buf
	room [8 << 10]byte
}

// OpenDir implements fuse.RawFileSystem.
func (f *files) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.nodes.use(in.NodeId)
	if n == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer n.release()
	if n.format != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	fd, err := f.reopen(n, unix.O_RDONLY)
	if err != nil {
		return status(err)
	}
	out.Fh = f.handles.add(fd, &listing{})
	return fuse.OK
}

// ReleaseDir implements fuse.RawFileSystem.
func (f *files) ReleaseDir(in *fuse.ReleaseIn) { f.handles.remove(in.Fh) }

// ReadDir implements fuse.RawFileSystem.
func (f *files) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.list(in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem: every entry comes with what a lookup would tell.
func (f *files) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := f.nodes.use(in.NodeId)
	if dir == nil {
		return fuse.Status(unix.ESTALE)
	}
	defer dir.release()
	return f.list(in, func(e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if validName(e.Name) {
			if format, code := f.entry(dir, e.Name, entry); code.Ok() {
				out.FixMode(format)
			} else {
				*entry = fuse.EntryOut{} // it has gone: the guest asks again if it cares
			}
		}
		return true
	})
}

// list hands out entries from an offset on, until add has no more room.
func (f *files) list(in *fuse.ReadIn, add func(fuse.DirEntry) bool) fuse.Status {
	h := f.handles.use(in.Fh)
	if h == nil || h.dir == nil {
		if h != nil {
			h.release()
		}
		return fuse.EBADF
	}
	defer h.release()
	h.mu.Lock()
	defer h.mu.Unlock()
	l := h.dir
	if int64(in.Offset) != l.next {
		if _, err := unix.Seek(h.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
			return status(err)
		}
		l.buf, l.next = nil, int64(in.Offset)
	}
	for {
		if len(l.buf) == 0 {
			n, err := unix.Getdents(h.fd, l.room[:])
			if err != nil {
				return status(err)
			}
			if n == 0 {
				return fuse.OK
			}
			l.buf = l.room[:n]
		}
		e, size := parseEntry(l.buf)
		if size == 0 {
			return fuse.EIO
		}
		if !add(e) {
			return fuse.OK
		}
		l.buf, l.next = l.buf[size:], int64(e.Off)
	}
}

// parseEntry reads a struct linux_dirent64; the size is 0 for what is none.
func parseEntry(b []byte) (e fuse.DirEntry, size int) {
	const header = 19 // inode, offset, size and type
	if len(b) <= header {
		return e, 0
	}
	size = int(binary.NativeEndian.Uint16(b[16:]))
	if size <= header || size > len(b) {
		return e, 0
	}
	name := b[header:size]
	for i, c := range name {
		if c == 0 {
			name = name[:i]
			break
		}
	}
	return fuse.DirEntry{
		Ino: binary.NativeEndian.Uint64(b), Off: binary.NativeEndian.Uint64(b[8:]), Mode: uint32(b[18]) << 12, Name: string(name),
	}, size
}
