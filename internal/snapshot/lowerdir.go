package snapshot

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plainDir is a directory of a layer that is one. Nobody changes a finished layer: what a name was found to be, it stays.
type plainDir struct {
	layer *os.File
	name  string // "." is the layer's root
	stat  unix.Stat_t
}

// openDirectory is a form's open.
func openDirectory(path string) (lowerDir, io.Closer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	root := &plainDir{layer: f, name: "."}
	if err := unix.Fstat(int(f.Fd()), &root.stat); err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return root, f, nil
}

func (d *plainDir) children(names map[string]*wish) (map[string]lowerDir, error) {
	found := map[string]lowerDir{}
	for name := range names {
		child := &plainDir{layer: d.layer, name: path.Join(d.name, name)}
		err := unix.Fstatat(int(d.layer.Fd()), child.name, &child.stat, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, fmt.Errorf("lower layer: %s: %w", quote(child.name), err)
		case child.stat.Mode&unix.S_IFMT != unix.S_IFDIR:
			found[name] = nil
		default:
			found[name] = child
		}
	}
	return found, nil
}

func (d *plainDir) attributes() (*entry, error) {
	e := &entry{
		kind: tar.TypeDir, mode: int64(d.stat.Mode & modeMask), uid: int(d.stat.Uid), gid: int(d.stat.Gid),
		mtime: time.Unix(d.stat.Mtim.Unix()), xattrs: map[string]string{},
	}
	fd, err := unix.Openat(int(d.layer.Fd()), d.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lower layer: %s: %w", quote(d.name), err)
	}
	defer unix.Close(fd)
	names, err := readAttribute(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if err != nil {
		return nil, fmt.Errorf("lower layer: %s: its attributes: %w", quote(d.name), err)
	}
	for name := range strings.SplitSeq(names, "\x00") {
		if name == "" {
			continue
		}
		if e.xattrs[name], err = readAttribute(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) }); err != nil {
			return nil, fmt.Errorf("lower layer: %s: attribute %s: %w", quote(d.name), quote(name), err)
		}
	}
	return e, nil
}

// readAttribute calls read with as much room as the kernel says that it needs.
func readAttribute(read func([]byte) (int, error)) (string, error) {
	n, err := read(nil)
	if err != nil || n == 0 {
		return "", err
	}
	b := make([]byte, n)
	n, err = read(b)
	return string(b[:max(n, 0)]), err
}
