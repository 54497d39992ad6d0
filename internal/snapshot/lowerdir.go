package snapshot

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// plainLayer is a layer that is a directory. Nobody changes a finished layer: what a name was found to be, it stays.
type plainLayer struct{ root *os.File }

// openDirectory is a form's open.
func openDirectory(path string) (lowerLayer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return plainLayer{f}, nil
}

func (l plainLayer) Close() error { return l.root.Close() }

func (l plainLayer) children(_ uint32, wanted *wish) (map[string]uint32, error) {
	found := map[string]uint32{}
	for name, child := range wanted.below {
		var st unix.Stat_t
		err := unix.Fstatat(int(l.root.Fd()), child.name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
		case err != nil:
			return nil, fmt.Errorf("lower layer: %s: %w", quote(child.name), err)
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			found[name] = noDirectory
		default:
			found[name] = rootDirectory // any number: directories go by their names
		}
	}
	return found, nil
}

func (l plainLayer) attributes(_ uint32, name string) (*entry, error) {
	fd, err := unix.Openat(int(l.root.Fd()), cmp.Or(name, "."), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lower layer: %s: %w", quote(name), err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("lower layer: %s: %w", quote(name), err)
	}
	e := &entry{
		kind: tar.TypeDir, mode: int64(st.Mode & modeMask), uid: int(st.Uid), gid: int(st.Gid),
		mtime: time.Unix(st.Mtim.Unix()), xattrs: map[string]string{},
	}
	names, err := readAttribute(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if err != nil {
		return nil, fmt.Errorf("lower layer: %s: its attributes: %w", quote(name), err)
	}
	for attribute := range strings.SplitSeq(names, "\x00") {
		if attribute == "" {
			continue
		}
		value, err := readAttribute(func(b []byte) (int, error) { return unix.Fgetxattr(fd, attribute, b) })
		if err != nil {
			return nil, fmt.Errorf("lower layer: %s: attribute %s: %w", quote(name), quote(attribute), err)
		}
		// A file system has attributes of its own too, which no layer can give a directory.
		if value, keep, err := xattr(attribute, value); err == nil && keep {
			e.xattrs[attribute] = value
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
