package vmm

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

const (
	// JailDir is where a jail's directory is in the jail.
	JailDir = "/run"
	// jailedProgram is the VMM itself.
	jailedProgram = "/vmm"
)

// Jail is all of the host that a VMM sees: a root of its own in a mount namespace of its own, that holds the VMM, one
// directory that the host sees as well, some files and some devices, and memory in common with the host; and a network namespace.
// The VMM's user can write nothing in it but that directory and that memory. A VMM that is linked dynamically sees the host's libraries, read-only.
type Jail struct {
	// Dir is the host's name of the directory that is JailDir inside. It belongs to the VMM's user.
	Dir string
	// Files are shown read-only under their names, which begin with a slash and have no other.
	Files map[string]*os.File
	// Dirs are made, empty.
	Dirs []string
	// Devices are names below /dev that the VMM may use.
	Devices []string
	// NetNS is the network namespace; nil is one with nothing in it. It stays the caller's.
	NetNS *os.File

	memory *os.File // the file system that MemoryFile is on, attached nowhere, or nil
}

// enter makes the jail and takes the calling thread into it.
func (j *Jail) enter(c Command) error {
	program, err := os.Open(c.Path)
	if err != nil {
		return err
	}
	defer program.Close()
	libraries, err := libraries(program)
	if err != nil {
		return err
	}
	defer libraries.close()
	// Mounts of the host are cloned while they are this thread's own.
	clones := map[string]int{}
	defer func() {
		for _, fd := range clones {
			unix.Close(fd)
		}
	}()
	for name, f := range j.Files {
		if clones[name], err = cloneFile(f, true); err != nil {
			return err
		}
	}
	if clones[jailedProgram], err = cloneFile(program, true); err != nil {
		return err
	}
	devices, err := j.devices()
	if err != nil {
		return err
	}
	if err := j.leaveHost(); err != nil {
		return err
	}
	for _, dir := range j.Dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for name, fd := range clones {
		if err := showFile(name, fd); err != nil {
			return err
		}
	}
	if err := j.showMemory(); err != nil {
		return err
	}
	if err := libraries.show(); err != nil {
		return err
	}
	for _, d := range devices {
		if err := d.make(c.User); err != nil {
			return err
		}
	}
	// What is started from here gains nothing by starting programs.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	return nil
}

// leaveHost gives the calling thread namespaces of its own and a root with nothing in it but Dir.
func (j *Jail) leaveHost() error {
	flags := unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	if j.NetNS == nil {
		flags |= unix.CLONE_NEWNET
	} else if err := unix.Setns(int(j.NetNS.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("join the network namespace: %w", err)
	}
	if err := unix.Unshare(flags); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	own, err := unix.OpenTree(unix.AT_FDCWD, j.Dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "clone mount of", Path: j.Dir, Err: err}
	}
	defer unix.Close(own)
	if err := unix.Mount("jail", j.Dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=1m,nr_inodes=4096"); err != nil {
		return fmt.Errorf("mount the root: %w", err)
	}
	if err := unix.Chdir(j.Dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return os.NewSyscallError("pivot_root", err)
	}
	// The old root lies over the new one.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	if err := os.Mkdir(JailDir, 0o755); err != nil {
		return err
	}
	return attach(own, JailDir)
}

func attach(tree int, at string) error {
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "attach mount to", Path: at, Err: err}
	}
	return nil
}

func (j *Jail) showMemory() error {
	if j.memory == nil {
		return nil
	}
	if err := os.Mkdir(memoryDir, 0o755); err != nil {
		return err
	}
	return attach(int(j.memory.Fd()), memoryDir)
}

// cloneFile makes a mount of one file, attached nowhere. It must be called where the file was opened.
func cloneFile(f *os.File, readOnly bool) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var opErr error
	err = raw.Control(func(at uintptr) {
		fd, opErr = unix.OpenTree(int(at), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	})
	if err = errors.Join(err, opErr); err != nil {
		return -1, &os.PathError{Op: "clone mount of", Path: f.Name(), Err: err}
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "set attributes of mount of", Path: f.Name(), Err: err}
	}
	return fd, nil
}

// showFile gives a clone a name in the root.
func showFile(name string, clone int) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	return attach(clone, name)
}

// Show gives a file a name in the root of the jail of a running VMM, and returns what the VMM will see of it. A device
// becomes a node of the VMM's user's, or one that its group can only read; anything else must be that user's to read, and to
// write.
func (p *Process) Show(name string, f *os.File, readOnly bool) (seen unix.Stat_t, err error) {
	info, err := f.Stat()
	if err != nil {
		return seen, err
	}
	if info.Mode()&fs.ModeDevice != 0 {
		node := device{name: name, mode: unix.S_IFBLK | 0o600, rdev: info.Sys().(*syscall.Stat_t).Rdev}
		if readOnly {
			node.mode, node.foreign = unix.S_IFBLK|0o040, true
		}
		err := p.inside(func() error {
			if err := node.make(p.user()); err != nil {
				return err
			}
			return unix.Stat(name, &seen)
		})
		return seen, err
	}
	clone, err := cloneFile(f, readOnly)
	if err != nil {
		return seen, err
	}
	defer unix.Close(clone)
	err = p.inside(func() error {
		if err := showFile(name, clone); err != nil {
			return err
		}
		return unix.Stat(name, &seen)
	})
	return seen, err
}

// Hide takes a name away again.
func (p *Process) Hide(name string) error {
	return p.inside(func() error {
		// A device is no mount.
		if err := unix.Unmount(name, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return &os.PathError{Op: "unmount", Path: name, Err: err}
		}
		return os.Remove(name)
	})
}

func (p *Process) user() *hypervisor.User {
	c := p.cmd.SysProcAttr.Credential
	if c == nil {
		return nil
	}
	return &hypervisor.User{UID: c.Uid, GID: c.Gid}
}

// device is a node in the jail.
type device struct {
	name string
	mode uint32
	rdev uint64
	// foreign nodes are the VMM's group's and not its user's, who could change their mode.
	foreign bool
}

// devices looks the names up on the host.
func (j *Jail) devices() ([]device, error) {
	var found []device
	for _, name := range j.Devices {
		path := filepath.Join("/dev", name)
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		found = append(found, device{name: path, mode: unix.S_IFCHR | 0o600, rdev: info.Sys().(*syscall.Stat_t).Rdev})
	}
	return found, nil
}

func (d device) make(user *hypervisor.User) error {
	if err := os.MkdirAll(filepath.Dir(d.name), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(d.name, d.mode, int(d.rdev)); err != nil {
		return &os.PathError{Op: "make device", Path: d.name, Err: err}
	}
	if user == nil {
		return nil
	}
	owner := int(user.UID)
	if d.foreign {
		owner = 0
	}
	return os.Chown(d.name, owner, int(user.GID))
}

// libraryPlaces are where programs look for their libraries.
var libraryPlaces = [...]string{"/lib", "/lib64", "/usr/lib", "/usr/lib64"}

// libraryTrees are what a program needs beside itself: clones of directories, and links.
type libraryTrees struct {
	trees map[string]int
	links map[string]string
}

// libraries are those of the host, where the program is linked dynamically.
func libraries(program *os.File) (l libraryTrees, err error) {
	l = libraryTrees{trees: map[string]int{}, links: map[string]string{}}
	file, err := elf.NewFile(program)
	if err != nil {
		return l, nil // the kernel will say what is wrong with it
	}
	dynamic := false
	for _, segment := range file.Progs {
		dynamic = dynamic || segment.Type == elf.PT_INTERP
	}
	if !dynamic {
		return l, nil
	}
	for _, place := range libraryPlaces {
		info, err := os.Lstat(place)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return l, err
		case info.Mode()&fs.ModeSymlink != 0:
			if l.links[place], err = os.Readlink(place); err != nil {
				return l, err
			}
			continue
		}
		dir, err := os.Open(place)
		if err != nil {
			return l, err
		}
		l.trees[place], err = cloneFile(dir, true)
		dir.Close()
		if err != nil {
			return l, err
		}
	}
	return l, nil
}

func (l libraryTrees) show() error {
	for place, clone := range l.trees {
		if err := os.MkdirAll(place, 0o755); err != nil {
			return err
		}
		if err := attach(clone, place); err != nil {
			return err
		}
	}
	for place, target := range l.links {
		if err := os.MkdirAll(filepath.Dir(place), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(target, place); err != nil {
			return err
		}
	}
	return nil
}

func (l libraryTrees) close() {
	for _, fd := range l.trees {
		unix.Close(fd)
	}
}
