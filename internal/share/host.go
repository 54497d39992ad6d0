package share

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hostmount"
	"github.com/pistis-run/pistis/internal/transport"
)

// endTimeout bounds the wait for a server that was killed: it may hang in a file system that does not answer.
const endTimeout = 5 * time.Second

// Share is a directory or a regular file of the host.
type Share struct {
	// Path on the host; symbolic links are followed.
	Path string
	// ReadOnly: nothing can be written through the share. With Recursive that holds for mounts below Path too.
	ReadOnly, Recursive bool
	// Follow: mounts that appear below Path on the host later appear in the share.
	Follow bool
	// Valid is how long the guest may believe names and attributes without asking again.
	Valid time.Duration
	// MaxWrite bounds the data of a message in bytes; 0 is the most that is possible.
	MaxWrite int
	// Watch: who watches the root of the share in the guest is told of what changes there on the host, as it is by
	// the kubelet's updates. It is for directories, and its guest must know of it.
	Watch bool
	// Attributes: the guest takes the attributes of directories with the answers to what has changed them.
	Attributes bool
	// Memory, where it is not nil, is memory that the guest has too, for the data of large messages.
	Memory *os.File
	// Handed: Hand will say what the messages pass through.
	Handed bool
}

// Host is a pod's server process, as the shim sees it.
type Host struct {
	cmd     *exec.Cmd
	control *net.UnixConn
	ns      *os.File // the server's mount namespace
	done    chan struct{}

	mu   sync.Mutex // one order at a time
	next int
}

// Served is a share that is being served. Close it to end it.
type Served struct {
	// File: it is a regular file and not a directory.
	File bool
	// Stream carries raw FUSE messages, unless Hand gave the server another one.
	Stream *net.UnixConn

	host  *Host
	point string // in the server's namespace
	local bool   // its file system is this machine's own
	// wasReadOnly: the host's own mount is read-only, whatever is asked.
	wasReadOnly bool
}

// Start starts a server: argv is a command that calls Main. stderr is the server's.
func Start(ctx context.Context, argv []string, stderr *os.File) (_ *Host, err error) {
	ours, theirs, err := socketpair(unix.SOCK_SEQPACKET)
	if err != nil {
		return nil, fmt.Errorf("start share server: %w", err)
	}
	defer theirs.Close()
	h := &Host{cmd: exec.Command(argv[0], argv[1:]...), control: ours, done: make(chan struct{})}
	h.cmd.Dir, h.cmd.Env, h.cmd.Stderr, h.cmd.ExtraFiles = "/", []string{}, stderr, []*os.File{theirs}
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	if err := h.cmd.Start(); err != nil {
		ours.Close()
		return nil, fmt.Errorf("start share server: %w", err)
	}
	go func() {
		h.cmd.Wait() // how it ended says nothing that the streams do not
		close(h.done)
	}()
	defer func() {
		if err != nil {
			err = errors.Join(err, h.Close())
		}
	}()
	if err := h.hear(ctx, 0); err != nil {
		return nil, fmt.Errorf("start share server: %w", err)
	}
	h.ns, err = os.Open(filepath.Join("/proc", strconv.Itoa(h.cmd.Process.Pid), "ns/mnt"))
	if err != nil {
		return nil, fmt.Errorf("start share server: %w", err)
	}
	return h, nil
}

// socketpair is a connection of which the second end is for another process.
func socketpair(kind int) (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return conn.(*net.UnixConn), theirs, nil
}

// PID of the server.
func (h *Host) PID() int { return h.cmd.Process.Pid }

// Done is closed when the server has ended.
func (h *Host) Done() <-chan struct{} { return h.done }

// hear waits for the report on an order.
func (h *Host) hear(ctx context.Context, number int) error {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		h.control.SetReadDeadline(time.Unix(1, 0))
	})
	r, err := h.read(number)
	if !stop() {
		<-interrupted
		h.control.SetReadDeadline(time.Time{})
		if err != nil {
			return context.Cause(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("it has ended: %w: %w", err, errdefs.ErrUnavailable)
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	return nil
}

// read passes over the reports on orders that were given up.
func (h *Host) read(number int) (r report, err error) {
	buf := make([]byte, maxControl)
	for {
		n, err := h.control.Read(buf)
		if err != nil || n == 0 {
			return r, errors.Join(err, io.ErrUnexpectedEOF)
		}
		r = report{}
		if err := json.Unmarshal(buf[:n], &r); err != nil || r.Number == number {
			return r, err
		}
	}
}

// Close kills the server and waits for its end. It is idempotent.
func (h *Host) Close() error {
	h.control.Close()
	_ = h.cmd.Process.Kill() // it may have ended
	if h.ns != nil {
		h.ns.Close()
	}
	bound := time.NewTimer(endTimeout)
	defer bound.Stop()
	select {
	case <-h.done:
		return nil
	case <-bound.C:
		return fmt.Errorf("share server: process %d does not end: a file system of the host does not answer", h.cmd.Process.Pid)
	}
}

// Serve shares a directory or a regular file. What cannot be shared is NotImplemented or InvalidArgument.
func (h *Host) Serve(ctx context.Context, s Share) (_ *Served, err error) {
	tree, served, err := clone(s)
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", s.Path, err)
	}
	defer tree.Close()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	served.host, served.point = h, "/"+strconv.Itoa(h.next)
	if err := h.inside(func() error { return attach(int(tree.Fd()), served.point, served.File) }); err != nil {
		return nil, fmt.Errorf("share %s: %w", s.Path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, served.detach())
		}
	}()
	ours, theirs, err := socketpair(unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	below, err := hostmount.Below(s.Path)
	quiet := err == nil && !below && !s.Follow && served.local
	o := order{Number: h.next, Quiet: quiet, Valid: s.Valid, MaxWrite: cmp.Or(s.MaxWrite, MaxWrite), Passing: s.Follow, Watch: s.Watch && !served.File, Attributes: s.Attributes, Handed: s.Handed}
	files := []int{int(tree.Fd()), int(theirs.Fd())}
	if s.Memory != nil {
		memory, err := transport.Duplicate(s.Memory)
		if err != nil {
			ours.Close()
			return nil, fmt.Errorf("share %s: memory of the guest: %w", s.Path, err)
		}
		defer unix.Close(memory)
		o.Memory = true
		files = append(files, memory)
	}
	data, err := json.Marshal(o)
	if err == nil {
		_, _, err = h.control.WriteMsgUnix(data, unix.UnixRights(files...), nil)
	}
	if err == nil {
		err = h.hear(ctx, h.next)
	}
	if err != nil {
		ours.Close()
		return nil, fmt.Errorf("share %s: %w", s.Path, err)
	}
	served.Stream = ours
	return served, nil
}

// clone copies the mounts at a path, with what must hold for them in the server.
func clone(s Share) (_ *os.File, _ *Served, err error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, s.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil, fmt.Errorf("%w on this node: %w", err, errdefs.ErrInvalidArgument)
	} else if err != nil {
		return nil, nil, err
	}
	tree := os.NewFile(uintptr(fd), s.Path)
	defer func() {
		if err != nil {
			tree.Close()
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return nil, nil, err
	}
	if fs.Type == unix.HUGETLBFS_MAGIC {
		return nil, nil, fmt.Errorf("it is in the host's huge pages, of which a VM pod has none: %w", errdefs.ErrNotImplemented)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG:
	case unix.S_IFSOCK:
		return nil, nil, fmt.Errorf("it is a socket of a process on the host, which a VM's processes cannot connect to as a file; reach the service over the network: %w", errdefs.ErrNotImplemented)
	case unix.S_IFIFO:
		return nil, nil, fmt.Errorf("it is a FIFO, whose other end is on the host; a FIFO inside a shared directory works between the pod's containers: %w", errdefs.ErrNotImplemented)
	default:
		return nil, nil, fmt.Errorf("it is a device node of the host, which a VM does not have: %w", errdefs.ErrNotImplemented)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if s.Follow {
		attr.Propagation = unix.MS_SLAVE
	}
	if s.ReadOnly && s.Recursive {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return nil, nil, fmt.Errorf("restrict the mount: %w", err)
	}
	if s.ReadOnly && !s.Recursive {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return nil, nil, fmt.Errorf("make the mount read-only: %w", err)
		}
	}
	local := []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.OVERLAYFS_SUPER_MAGIC}
	return tree, &Served{local: slices.Contains(local, int64(fs.Type)), File: st.Mode&unix.S_IFMT == unix.S_IFREG, wasReadOnly: fs.Flags&unix.ST_RDONLY != 0}, nil
}

// attach puts a cloned mount into the namespace of the caller.
func attach(tree int, point string, file bool) (err error) {
	if file {
		var fd int
		if fd, err = unix.Open(point, unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600); err == nil {
			unix.Close(fd)
		}
	} else {
		err = unix.Mkdir(point, 0o700)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(fmt.Errorf("attach to the server: %w", err), remove(point, file))
	}
	return nil
}

func remove(point string, file bool) error {
	if file {
		return unix.Unlink(point)
	}
	return unix.Rmdir(point)
}

// Writable makes a share that was served read-only, and not recursively so, writable, as far as the host's own mount is.
func (s *Served) Writable() error {
	if s.wasReadOnly {
		return nil // then nothing that is asked makes it writable, as in any container
	}
	return s.host.inside(func() error {
		return unix.MountSetattr(unix.AT_FDCWD, s.point, 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	})
}

// Close ends the share: the server lets go of its files, and the mount goes. It waits for that for a bounded time. A
// file system that hangs keeps its mount until the server ends.
func (s *Served) Close() error {
	_ = s.Stream.CloseWrite()
	_ = s.Stream.SetReadDeadline(time.Now().Add(endTimeout))
	_, err := io.Copy(io.Discard, s.Stream)
	return errors.Join(err, s.Stream.Close(), s.detach())
}

func (s *Served) detach() error {
	select {
	case <-s.host.done:
		return nil // the namespace has gone with the server
	default:
	}
	return s.host.inside(func() error {
		if err := unix.Unmount(s.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount share: %w", err)
		}
		return remove(s.point, s.File)
	})
}

// inside runs fn on a thread in the server's mount namespace. The thread ends with it: what it shares with the others
// cannot be given back. It never is the first thread, by which /proc knows the process.
func (h *Host) inside(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			result <- h.inside(fn) // on another thread, as this one is taken
			return
		}
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNS)
		}
		if err == nil {
			err = fn()
		}
		result <- err
	}()
	return <-result
}
