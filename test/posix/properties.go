package posix

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// property is what must hold of a file, told by an error that is a number or says what was seen.
type property struct {
	name string
	uid  int
	do   func(path string) error
}

// properties are of open files, times, sizes and sparse files.
func (s *suite) properties() error {
	for _, p := range slices.Concat(openFiles(), sizes(), times(), modes()) {
		err := s.do(p.name, p.uid, func(sc scene) error { return place(sc.root+"/x", "file", p.uid) }, func(sc scene) error { return p.do(sc.root + "/x") })
		if err != nil {
			return err
		}
	}
	return nil
}

// saw makes a result of what was seen.
func saw(v ...any) error { return errors.New(fmt.Sprint(v...)) }

// with opens a file for a function.
func with(flags int, do func(fd int, path string) error) func(string) error {
	return func(path string) error {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		return errors.Join(do(fd, path), unix.Close(fd))
	}
}

func openFiles() []property {
	return []property{
		{"read and write after unlink", 0, with(unix.O_RDWR, func(fd int, path string) error {
			b := make([]byte, 20)
			_, werr := unix.Pwrite(fd, []byte("new"), 8)
			err := errors.Join(unix.Unlink(path), werr)
			n, rerr := unix.Pread(fd, b, 0)
			var st unix.Stat_t
			return errors.Join(err, rerr, unix.Fstat(fd, &st), saw(string(b[:n]), st.Nlink, st.Size))
		})},
		{"fchmod, fchown and ftruncate after unlink", 0, with(unix.O_RDWR, func(fd int, path string) error {
			var st unix.Stat_t
			return errors.Join(unix.Unlink(path), unix.Fchmod(fd, 0o600), unix.Fchown(fd, 3, 4), unix.Ftruncate(fd, 4), unix.Fstat(fd, &st), saw(fmt.Sprintf("%o", st.Mode), st.Uid, st.Gid, st.Size))
		})},
		{"a directory that was removed while open", 0, func(path string) error {
			dir := path + "-dir"
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			return with(unix.O_RDONLY|unix.O_DIRECTORY, func(fd int, path string) error {
				err := unix.Rmdir(path)
				_, cerr := unix.Openat(fd, "new", unix.O_CREAT|unix.O_RDWR, 0o600)
				return errors.Join(err, saw(errno(cerr)))
			})(dir)
		}},
		{"rename while open", 0, with(unix.O_RDWR, func(fd int, path string) error {
			err := errors.Join(os.WriteFile(path+"2", []byte("replaced"), 0o600), unix.Rename(path, path+"2"))
			_, werr := unix.Pwrite(fd, []byte("AB"), 0)
			b, rerr := os.ReadFile(path + "2")
			return errors.Join(err, werr, rerr, saw(string(b)))
		})},
		{"append by two", 0, with(unix.O_WRONLY|unix.O_APPEND, func(fd int, path string) error {
			two, err := unix.Open(path, unix.O_WRONLY|unix.O_APPEND, 0)
			for _, to := range []int{fd, two, fd} {
				_, werr := unix.Write(to, []byte{'a' + byte(to&1)})
				err = errors.Join(err, werr)
			}
			var st unix.Stat_t
			return errors.Join(err, unix.Close(two), unix.Stat(path, &st), saw(st.Size))
		})},
		{"write to what is open for reading", 0, with(unix.O_RDONLY, func(fd int, _ string) error {
			_, err := unix.Write(fd, []byte("x"))
			return errors.Join(saw(errno(err), errno(unix.Ftruncate(fd, 1))))
		})},
		{"open for more than the mode allows, by who made it", nobody, func(path string) error {
			fd, err := unix.Open(path+"-new", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o000)
			if err != nil {
				return err
			}
			_, err = unix.Write(fd, []byte("x"))
			_, again := unix.Open(path+"-new", unix.O_RDONLY, 0)
			return errors.Join(err, unix.Close(fd), saw(errno(again)))
		}},
		{"mapped and shared with write and read", 0, with(unix.O_RDWR, func(fd int, path string) error {
			m, err := unix.Mmap(fd, 0, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			copy(m, "MAP")
			_, err = unix.Pwrite(fd, []byte("W"), 5)
			b, rerr := os.ReadFile(path)
			return errors.Join(err, rerr, saw(string(m), " ", string(b)), unix.Munmap(m))
		})},
		{"O_DIRECT", 0, with(unix.O_RDWR|unix.O_DIRECT, func(fd int, _ string) error { return nil })},
		{"O_TMPFILE", 0, func(path string) error {
			return with(unix.O_RDWR|unix.O_TMPFILE, func(int, string) error { return nil })(path[:len(path)-2])
		}},
		{"locks", 0, with(unix.O_RDWR, func(fd int, path string) error {
			return with(unix.O_RDWR, func(two int, _ string) error {
				lock := func(fd int, kind int16) string {
					return errno(unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Len: 5}))
				}
				return saw(lock(fd, unix.F_WRLCK), lock(two, unix.F_RDLCK), lock(fd, unix.F_UNLCK), lock(two, unix.F_WRLCK),
					errno(unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)), errno(unix.Flock(two, unix.LOCK_SH|unix.LOCK_NB)))
			})(path)
		})},
	}
}

func sizes() []property {
	const hole = 8 << 20
	extent := func(mode uint32, off, length int64) func(string) error {
		return with(unix.O_RDWR, func(fd int, path string) error {
			var st unix.Stat_t
			err := unix.Fallocate(fd, mode, off, length)
			b, rerr := os.ReadFile(path)
			return errors.Join(rerr, unix.Fstat(fd, &st), saw(errno(err), st.Size, fmt.Sprintf("%.40q", bytes.TrimRight(b, "\x00"))))
		})
	}
	return []property{
		{"fallocate", 0, extent(0, 0, 100000)},
		{"fallocate, keeping the size", 0, extent(unix.FALLOC_FL_KEEP_SIZE, 0, 100000)},
		{"fallocate of nothing", 0, extent(0, 0, 0)},
		{"fallocate before the file", 0, extent(0, -1, 10)},
		{"fallocate beyond all", 0, extent(0, 1<<62, 1<<62)},
		{"punch a hole", 0, extent(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 2, 5)},
		{"zero a range", 0, extent(unix.FALLOC_FL_ZERO_RANGE, 2, 20)},
		{"holes and data", 0, with(unix.O_RDWR, func(fd int, _ string) error {
			_, err := unix.Pwrite(fd, []byte("end"), hole)
			data, derr := unix.Seek(fd, 1<<20, unix.SEEK_DATA)
			gap, herr := unix.Seek(fd, 0, unix.SEEK_HOLE)
			_, after := unix.Seek(fd, hole+3, unix.SEEK_DATA)
			var st unix.Stat_t
			return errors.Join(err, derr, herr, unix.Fstat(fd, &st), saw(data > 1<<20 && data <= hole, gap < 1<<20, errno(after), st.Blocks < 1000))
		})},
		{"a byte at 3 GiB", 0, with(unix.O_RDWR, func(fd int, _ string) error {
			_, err := unix.Pwrite(fd, []byte("x"), 3<<30)
			b := make([]byte, 4)
			n, rerr := unix.Pread(fd, b, 3<<30-2)
			return errors.Join(err, rerr, saw(n, b))
		})},
		{"copy_file_range", 0, with(unix.O_RDWR, func(fd int, _ string) error {
			from, to := int64(2), int64(20)
			n, err := unix.CopyFileRange(fd, &from, fd, &to, 6, 0)
			b := make([]byte, 30)
			m, rerr := unix.Pread(fd, b, 0)
			return errors.Join(err, rerr, saw(n, fmt.Sprintf("%q", b[:m])))
		})},
		{"a value as large as possible", 0, func(path string) error {
			value := make([]byte, 1000)
			err := unix.Setxattr(path, "user.large", value, unix.XATTR_CREATE)
			again := unix.Setxattr(path, "user.large", value, unix.XATTR_CREATE)
			n, gerr := unix.Getxattr(path, "user.large", nil)
			_, short := unix.Getxattr(path, "user.large", make([]byte, 10))
			too := unix.Setxattr(path, "user.too-large", make([]byte, 65537), 0)
			return saw(errno(err), errno(again), n, errno(gerr), errno(short), errno(too))
		}},
		{"attributes of others' names", nobody, func(path string) error {
			return saw(errno(unix.Setxattr(path, "trusted.a", []byte("b"), 0)), errno(unix.Setxattr(path, "nowhere.a", []byte("b"), 0)), errno(unix.Setxattr(path, "user.", []byte("b"), 0)))
		}},
	}
}

func times() []property {
	// changes says whether a call changes the time of the last change of the inode.
	changes := func(do func(path string) error) func(string) error {
		return func(path string) error {
			var before, after unix.Stat_t
			err := unix.Lstat(path, &before)
			now := before.Ctim
			for now == before.Ctim { // the clock of file systems has ticks
				if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil {
					return err
				}
			}
			for next := now; next == now; {
				if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &next); err != nil {
					return err
				}
			}
			err = errors.Join(err, do(path))
			return errors.Join(err, unix.Lstat(path, &after), saw(after.Ctim != before.Ctim, after.Mtim.Sec != past))
		}
	}
	return []property{
		{"ctime of chmod", 0, changes(func(p string) error { return unix.Chmod(p, 0o600) })},
		{"ctime of chown", 0, changes(func(p string) error { return unix.Chown(p, 1, 1) })},
		{"ctime of link", 0, changes(func(p string) error { return unix.Link(p, p+"2") })},
		{"ctime of rename", 0, changes(func(p string) error { return errors.Join(unix.Rename(p, p+"2"), unix.Rename(p+"2", p)) })},
		{"ctime of truncate", 0, changes(func(p string) error { return unix.Truncate(p, 2) })},
		{"ctime of truncate to the same size", 0, changes(func(p string) error { return unix.Truncate(p, 10) })},
		{"ctime of setxattr", 0, changes(func(p string) error { return unix.Setxattr(p, "user.a", nil, 0) })},
		{"ctime of read", 0, changes(func(p string) error { _, err := os.ReadFile(p); return err })},
		{"ctime of an empty write", 0, changes(with(unix.O_WRONLY, func(fd int, _ string) error { _, err := unix.Write(fd, nil); return err }))},
		{"ctime of write", 0, changes(with(unix.O_WRONLY, func(fd int, _ string) error { _, err := unix.Write(fd, []byte("x")); return err }))},
		{"utimens with nanoseconds, before 1970 and far away", 0, func(path string) error {
			var seen []any
			for _, sec := range []int64{-1, 1<<31 + 5} {
				var st unix.Stat_t
				err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: sec, Nsec: 123456789}}, 0)
				seen = append(seen, errno(errors.Join(err, unix.Stat(path, &st))), st.Mtim.Sec, " ", st.Mtim.Nsec, " ")
			}
			return saw(seen...)
		}},
	}
}

func modes() []property {
	special := func(do func(path string) error) func(string) error {
		return func(path string) error {
			var st unix.Stat_t
			// By root, as only the file system's user has changed.
			err := do(path)
			return errors.Join(unix.Stat(path, &st), saw(errno(err), fmt.Sprintf(" %o", st.Mode&0o7777)))
		}
	}
	var all []property
	for _, uid := range []int{0, nobody} {
		who := map[bool]string{true: "root", false: "the owner"}[uid == 0]
		for name, do := range map[string]func(path string) error{
			"write":    func(p string) error { return os.WriteFile(p, []byte("x"), 0) },
			"truncate": func(p string) error { return unix.Truncate(p, 1) },
			"chown":    func(p string) error { return unix.Chown(p, uid, uid) },
			"mmap": with(unix.O_RDWR, func(fd int, _ string) error {
				m, err := unix.Mmap(fd, 0, 10, unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				m[0] = 'x'
				return unix.Munmap(m)
			}),
		} {
			for _, mode := range []uint32{0o6755, 0o2745, 0o4644} {
				all = append(all, property{fmt.Sprintf("%s of a file with mode %o by %s", name, mode, who), uid, special(func(path string) error {
					return errors.Join(unix.Chmod(path, mode), do(path))
				})})
			}
		}
	}
	for _, umask := range []int{0, 0o077, 0o777} {
		all = append(all, property{fmt.Sprintf("umask %o", umask), 0, func(path string) error {
			old := unix.Umask(umask)
			defer unix.Umask(old)
			return errors.Join(unix.Mkdir(path+"d", 0o1777), unix.Mkfifo(path+"f", 0o666), open(unix.O_CREAT|unix.O_WRONLY)(path+"o"))
		}})
	}
	return all
}
