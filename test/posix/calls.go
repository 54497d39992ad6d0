package posix

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// operation is a call with one path.
type operation struct {
	name string
	do   func(path string) error
}

func open(flags int) func(string) error {
	return func(path string) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o666)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	}
}

func operations() []operation {
	other := func(path string) string { return filepath.Join(filepath.Dir(strings.TrimRight(path, "/")), "other") }
	then := []unix.Timespec{{Sec: past, Nsec: 5}, {Sec: past, Nsec: 7}}
	return []operation{
		{"stat", func(p string) error { var st unix.Stat_t; return unix.Stat(p, &st) }},
		{"lstat", func(p string) error { var st unix.Stat_t; return unix.Lstat(p, &st) }},
		{"readlink", func(p string) error { _, err := unix.Readlink(p, make([]byte, 100)); return err }},
		{"access-rwx", func(p string) error {
			return unix.Faccessat(unix.AT_FDCWD, p, unix.R_OK|unix.W_OK|unix.X_OK, unix.AT_EACCESS)
		}},
		{"open-read", open(unix.O_RDONLY)},
		{"open-write", open(unix.O_WRONLY)},
		{"open-truncate", open(unix.O_WRONLY | unix.O_TRUNC)},
		{"open-create", open(unix.O_RDWR | unix.O_CREAT)},
		{"open-exclusive", open(unix.O_RDWR | unix.O_CREAT | unix.O_EXCL)},
		{"open-directory", open(unix.O_RDONLY | unix.O_DIRECTORY)},
		{"open-nofollow", open(unix.O_RDONLY | unix.O_NOFOLLOW)},
		{"open-append", open(unix.O_WRONLY | unix.O_APPEND)},
		{"mkdir", func(p string) error { return unix.Mkdir(p, 0o777) }},
		{"mkdir-sticky", func(p string) error { return unix.Mkdir(p, 0o1770) }},
		{"mkfifo", func(p string) error { return unix.Mkfifo(p, 0o666) }},
		{"mknod-file", func(p string) error { return unix.Mknod(p, unix.S_IFREG|0o640, 0) }},
		{"mknod-socket", func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o640, 0) }},
		{"symlink", func(p string) error { return unix.Symlink("some/where", p) }},
		{"symlink-long", func(p string) error { return unix.Symlink(strings.Repeat("x", 4095), p) }},
		{"unlink", unix.Unlink},
		{"rmdir", unix.Rmdir},
		{"link-from", func(p string) error { return unix.Link(p, other(p)) }},
		{"link-follow", func(p string) error {
			return unix.Linkat(unix.AT_FDCWD, p, unix.AT_FDCWD, other(p), unix.AT_SYMLINK_FOLLOW)
		}},
		{"rename-from", func(p string) error { return unix.Rename(p, other(p)) }},
		{"rename-itself", func(p string) error { return unix.Rename(p, p) }},
		{"rename-below-itself", func(p string) error { return unix.Rename(p, p+"/in") }},
		{"chmod", func(p string) error { return unix.Chmod(p, 0o751) }},
		{"chmod-special", func(p string) error { return unix.Chmod(p, 0o7755) }},
		{"chown", func(p string) error { return unix.Chown(p, 1, 2) }},
		{"chown-group", func(p string) error { return unix.Chown(p, -1, nobody) }},
		{"chown-nothing", func(p string) error { return unix.Chown(p, -1, -1) }},
		{"lchown", func(p string) error { return unix.Lchown(p, 1, 2) }},
		{"truncate-shorter", func(p string) error { return unix.Truncate(p, 3) }},
		{"truncate-longer", func(p string) error { return unix.Truncate(p, 5<<30) }},
		{"truncate-negative", func(p string) error { return unix.Truncate(p, -1) }},
		{"utimens", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, then, 0) }},
		{"utimens-now", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, nil, 0) }},
		{"utimens-nofollow", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, then, unix.AT_SYMLINK_NOFOLLOW) }},
		{"setxattr", func(p string) error { return unix.Setxattr(p, "user.a", []byte("b"), 0) }},
		{"lsetxattr", func(p string) error { return unix.Lsetxattr(p, "user.a", []byte("b"), 0) }},
		{"setxattr-replace", func(p string) error { return unix.Setxattr(p, "user.a", []byte("b"), unix.XATTR_REPLACE) }},
		{"getxattr", func(p string) error { _, err := unix.Getxattr(p, "user.a", make([]byte, 10)); return err }},
		{"removexattr", func(p string) error { return unix.Removexattr(p, "user.a") }},
		{"listxattr", func(p string) error { _, err := unix.Listxattr(p, make([]byte, 1000)); return err }},
		{"statfs", func(p string) error { var st unix.Statfs_t; return unix.Statfs(p, &st) }},
		{"list", func(p string) error { _, err := os.ReadDir(p); return cause(err) }},
	}
}

// cause leaves the number of an error of package os.
func cause(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// paths are how a call may name what it is about; x is a file of some kind in the scene.
func paths() map[string]func(root string) string {
	return map[string]func(root string) string{
		"":            func(root string) string { return root + "/x" },
		" with slash": func(root string) string { return root + "/x/" },
		" below":      func(root string) string { return root + "/x/y" },
		" dot":        func(root string) string { return root + "/x/." },
		" dotdot":     func(root string) string { return root + "/x/.." },
	}
}

// places are directories that a file is in, and who owns both.
func places() map[string]struct {
	mode     uint32
	dir, own int
} {
	return map[string]struct {
		mode     uint32
		dir, own int
	}{
		" in no search": {0o600, 1, nobody}, " in no write": {0o755, 1, nobody}, " in sticky of others": {0o1777, 1, 1},
		" own in sticky of others": {0o1777, 1, nobody}, " of others in own sticky": {0o1777, nobody, 1}, " in setgid": {0o2777, 1, 1},
	}
}

// calls are all operations with all kinds of files, paths and owners.
func (s *suite) calls() error {
	for _, op := range operations() {
		for _, kind := range kinds() {
			for how, path := range paths() {
				if how != "" && kind != "file" && kind != "dir" && kind != "full-dir" && kind != "link-to-dir" && kind != "none" {
					continue
				}
				for _, uid := range []int{0, nobody} {
					err := s.do(op.name+" of "+kind+how, uid,
						func(sc scene) error { return place(sc.root+"/x", kind, 0) },
						func(sc scene) error { return op.do(path(sc.root)) })
					if err != nil {
						return err
					}
				}
			}
		}
		if err := s.callsByPlace(op); err != nil {
			return err
		}
		if err := s.callsByName(op); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) callsByPlace(op operation) error {
	for where, p := range places() {
		for _, kind := range []string{"none", "file", "dir"} {
			err := s.do(op.name+" of "+kind+where, nobody, func(sc scene) error {
				dir := sc.root + "/d"
				return errors.Join(os.Mkdir(dir, 0o700), place(dir+"/x", kind, p.own), unix.Chown(dir, p.dir, p.dir), unix.Chmod(dir, p.mode), agedTo(dir))
			}, func(sc scene) error { return op.do(sc.root + "/d/x") })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *suite) callsByName(op operation) error {
	for name, path := range map[string]string{
		"255": "/" + strings.Repeat("n", 255), "256": "/" + strings.Repeat("n", 256), "4096": strings.Repeat("/n", 2048), "empty": "",
		"not-utf8": "/\xff\xfe", "blank": "/ ", "newline": "/a\nb",
	} {
		for _, kind := range []string{"none", "file"} {
			if kind == "file" && (name == "256" || name == "4096" || name == "empty") {
				continue
			}
			err := s.do(op.name+" of "+kind+" named "+name, 0,
				func(sc scene) error { return place(sc.root+path, kind, 0) },
				func(sc scene) error {
					if path == "" {
						return op.do("")
					}
					return op.do(sc.root + path)
				})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
