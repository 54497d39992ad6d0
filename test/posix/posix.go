package posix

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// nobody is a user without rights, who owns nothing but what a case gives him.
const nobody = 65534

// past is the time of all files before something is done to them.
const past = 1_000_000_000

// suite writes the lines of all cases.
type suite struct {
	dir   string
	out   *bufio.Writer
	every uint32
	cases int
}

// Run writes a line for each case, done in directories of its own below dir, which is to be empty. Of the cases it does one
// in every, always the same ones. The process must be root, with the rights that containers have.
func Run(dir string, out io.Writer, every int) (cases int, err error) {
	old := unix.Umask(0o022)
	defer unix.Umask(old)
	s := &suite{dir: dir, out: bufio.NewWriter(out), every: uint32(every)}
	for _, part := range []func() error{s.calls, s.pairs, s.properties} {
		if err := part(); err != nil {
			return s.cases, err
		}
	}
	return s.cases, s.out.Flush()
}

func errno(err error) string {
	var e unix.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e):
		return unix.ErrnoName(e)
	}
	return err.Error()
}

// as does something as another user, without the rights of root over files.
func as(uid int, do func() error) error {
	if uid == 0 {
		return do()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// The file system's user is a thread's own, and takes the capabilities over files with it.
	unix.SetfsgidRetGid(uid)
	unix.SetfsuidRetUid(uid)
	defer unix.SetfsgidRetGid(0)
	defer unix.SetfsuidRetUid(0)
	return do()
}

// kinds are the files that a case may find.
func kinds() []string {
	return []string{"none", "file", "dir", "full-dir", "fifo", "socket", "link-to-file", "link-to-dir", "dangling", "loop"}
}

// place makes a file of a kind, with what it points to beside it.
func place(path, kind string, uid int) error {
	dir := filepath.Dir(path)
	made := []string{path}
	var err error
	switch kind {
	case "none":
		return nil
	case "file":
		err = os.WriteFile(path, []byte("0123456789"), 0o644)
	case "dir":
		err = os.Mkdir(path, 0o755)
	case "full-dir":
		err = errors.Join(os.Mkdir(path, 0o755), os.WriteFile(filepath.Join(path, "in"), nil, 0o644))
		made = append(made, filepath.Join(path, "in"))
	case "fifo":
		err = unix.Mkfifo(path, 0o644)
	case "socket":
		err = unix.Mknod(path, unix.S_IFSOCK|0o644, 0)
	case "link-to-file":
		err = errors.Join(os.WriteFile(filepath.Join(dir, "target"), []byte("01234"), 0o644), os.Symlink("target", path))
		made = append(made, filepath.Join(dir, "target"))
	case "link-to-dir":
		err = errors.Join(os.Mkdir(filepath.Join(dir, "target-dir"), 0o755), os.Symlink("target-dir", path))
		made = append(made, filepath.Join(dir, "target-dir"))
	case "dangling":
		err = os.Symlink("nowhere", path)
	case "loop":
		err = os.Symlink(filepath.Base(path), path)
	}
	if err != nil {
		return err
	}
	for _, p := range slices.Backward(made) {
		if err := errors.Join(unix.Lchown(p, uid, uid), agedTo(p)); err != nil {
			return err
		}
	}
	return nil
}

func agedTo(path string) error {
	then := []unix.Timespec{{Sec: past}, {Sec: past}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, then, unix.AT_SYMLINK_NOFOLLOW)
}

// state says all of a tree that a case may have changed.
func state(root string) string {
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, root)
		if len(name) > 20 {
			name = fmt.Sprintf("%.10s…%d", name, len(name))
		}
		fmt.Fprintf(&b, " %s:%o,%d:%d", name, st.Mode, st.Uid, st.Gid)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR { // sizes and links of directories are each file system's own
			fmt.Fprintf(&b, ",n%d,s%d", st.Nlink, st.Size)
		}
		if st.Mtim.Sec != past {
			b.WriteString(",changed")
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, ",%.12q", target)
		}
		return nil
	})
	if err != nil {
		return b.String() + " " + errno(err)
	}
	return b.String()
}

// scene is the directory of one case.
type scene struct {
	root string // below it nothing but the case's files
	uid  int
}

// do runs one case and writes its line: what the call returned, and the state after it.
func (s *suite) do(name string, uid int, prepare func(scene) error, call func(scene) error) error {
	if hash := fnv.New32a(); s.every > 1 {
		fmt.Fprint(hash, name, uid)
		if hash.Sum32()%s.every != 0 {
			return nil
		}
	}
	s.cases++
	sc := scene{filepath.Join(s.dir, fmt.Sprintf("case%d", s.cases)), uid}
	if err := os.Mkdir(sc.root, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(sc.root, 0o777); err != nil {
		return err
	}
	if err := errors.Join(prepare(sc), agedTo(sc.root)); err != nil {
		return fmt.Errorf("%s: prepare: %w", name, err)
	}
	who := "root"
	if uid != 0 {
		who = "user"
	}
	result := errno(as(uid, func() error { return call(sc) }))
	fmt.Fprintf(s.out, "%s by %s: %s;%s\n", name, who, result, state(sc.root))
	if err := os.RemoveAll(sc.root); err != nil {
		return fmt.Errorf("%s: clean up: %w", name, err)
	}
	return nil
}

// Parse takes what Run wrote: results by case.
func Parse(text string) map[string]string {
	results := map[string]string{}
	for line := range strings.Lines(text) {
		if name, result, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); ok {
			results[name] = result
		}
	}
	return results
}
