package integration

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInGuest does to a share what programs do to a file system. TestVolumes runs it inside a guest.
func TestInGuest(t *testing.T) {
	dir := os.Getenv(guestDir)
	if dir == "" {
		t.Skip("it runs inside a guest, started by TestVolumes")
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]func(t *testing.T){
		"mmap": func(t *testing.T) {
			f, err := os.Create(at("mmap"))
			must(t, err)
			defer f.Close()
			must(t, f.Truncate(1<<20))
			m, err := unix.Mmap(int(f.Fd()), 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			must(t, err)
			copy(m[512<<10:], "mapped and written")
			must(t, unix.Msync(m, unix.MS_SYNC))
			must(t, unix.Munmap(m))
		},
		"hard link": func(t *testing.T) {
			must(t, os.WriteFile(at("one"), []byte("1"), 0o644))
			must(t, os.Link(at("one"), at("two")))
			a, err := os.Stat(at("one"))
			must(t, err)
			b, err := os.Stat(at("two"))
			must(t, err)
			if !os.SameFile(a, b) {
				t.Error("two names, two files")
			}
			must(t, os.Remove(at("one")))
			_, err = os.ReadFile(at("two"))
			must(t, err)
		},
		"rename of an open file": func(t *testing.T) {
			f, err := os.Create(at("before"))
			must(t, err)
			must(t, os.WriteFile(at("renamed"), []byte("replaced"), 0o644))
			must(t, os.Rename(at("before"), at("renamed")))
			_, err = f.WriteString("still open")
			must(t, err)
			must(t, f.Sync())
			must(t, f.Close())
		},
		"removed and open": func(t *testing.T) {
			f, err := os.Create(at("removed"))
			must(t, err)
			defer f.Close()
			must(t, os.Remove(at("removed")))
			_, err = f.WriteAt([]byte("x"), 10)
			must(t, err)
			info, err := f.Stat()
			must(t, err)
			if info.Size() != 11 {
				t.Errorf("size %d", info.Size())
			}
		},
		"attributes": func(t *testing.T) {
			must(t, os.WriteFile(at("x"), nil, 0o644))
			err := unix.Setxattr(at("x"), "user.test", []byte("value"), 0)
			if errors.Is(err, unix.EOPNOTSUPP) {
				t.Skip("the host's file system has no user attributes")
			}
			must(t, err)
			buf := make([]byte, 100)
			n, err := unix.Getxattr(at("x"), "user.test", buf)
			must(t, err)
			if string(buf[:n]) != "value" {
				t.Errorf("got %q", buf[:n])
			}
			n, err = unix.Listxattr(at("x"), buf)
			must(t, err)
			if !bytes.Contains(buf[:n], []byte("user.test\x00")) {
				t.Errorf("list %q", buf[:n])
			}
			must(t, unix.Removexattr(at("x"), "user.test"))
		},
		"sparse": func(t *testing.T) {
			f, err := os.Create(at("sparse"))
			must(t, err)
			defer f.Close()
			_, err = f.WriteAt([]byte("end"), 4<<20)
			must(t, err)
			off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
			must(t, err)
			var st unix.Stat_t
			must(t, unix.Fstat(int(f.Fd()), &st))
			if off == 0 || st.Blocks > 100 {
				t.Errorf("data from %d on, %d blocks", off, st.Blocks)
			}
		},
		"names": func(t *testing.T) {
			for _, name := range []string{"\xff\xfe not UTF-8", strings.Repeat("n", 255), " ", "-rf", "new\nline"} {
				must(t, os.WriteFile(at(name), []byte(name), 0o644))
				b, err := os.ReadFile(at(name))
				if err != nil || string(b) != name {
					t.Errorf("%q: %q, %v", name, b, err)
				}
			}
			if err := os.WriteFile(at(strings.Repeat("n", 256)), nil, 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
				t.Errorf("a name of 256 bytes: %v", err)
			}
		},
		"special files": func(t *testing.T) {
			must(t, unix.Mkfifo(at("fifo"), 0o600))
			l, err := net.Listen("unix", at("socket"))
			must(t, err)
			defer l.Close()
			c, err := net.Dial("unix", at("socket"))
			must(t, err)
			c.Close()
			if err := unix.Mknod(at("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); !errors.Is(err, unix.EPERM) {
				t.Errorf("a device: %v", err)
			}
		},
		"locks": func(t *testing.T) {
			a, err := os.Create(at("lock"))
			must(t, err)
			defer a.Close()
			b, err := os.Open(at("lock"))
			must(t, err)
			defer b.Close()
			must(t, unix.Flock(int(a.Fd()), unix.LOCK_EX))
			if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
				t.Errorf("a second lock: %v", err)
			}
		},
		"many entries": func(t *testing.T) {
			must(t, os.Mkdir(at("many"), 0o755))
			for i := range 700 {
				must(t, os.WriteFile(at("many/"+strings.Repeat("e", 40)+string(rune('a'+i%26))+strings.Repeat("f", i/26)), nil, 0o644))
			}
			entries, err := os.ReadDir(at("many"))
			must(t, err)
			if len(entries) != 700 {
				t.Errorf("%d entries", len(entries))
			}
			must(t, os.RemoveAll(at("many")))
		},
		"set-user-ID": func(t *testing.T) {
			must(t, os.WriteFile(at("suid"), []byte("x"), 0o755))
			must(t, os.Chmod(at("suid"), 0o755|os.ModeSetuid))
			info, err := os.Stat(at("suid"))
			must(t, err)
			if info.Mode()&os.ModeSetuid == 0 {
				t.Errorf("mode %v", info.Mode())
			}
		},
		"times": func(t *testing.T) {
			must(t, os.WriteFile(at("times"), nil, 0o644))
			info, err := os.Stat(at("times"))
			must(t, err)
			want := info.ModTime().AddDate(-1, 0, 0)
			must(t, os.Chtimes(at("times"), want, want))
			info, err = os.Stat(at("times"))
			must(t, err)
			if !info.ModTime().Equal(want) {
				t.Errorf("got %v, want %v", info.ModTime(), want)
			}
		},
		"append": func(t *testing.T) {
			for range 3 {
				f, err := os.OpenFile(at("log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
				must(t, err)
				_, err = f.WriteString("line\n")
				must(t, err)
				must(t, f.Close())
			}
			b, err := os.ReadFile(at("log"))
			if err != nil || string(b) != "line\nline\nline\n" {
				t.Errorf("%q, %v", b, err)
			}
		},
	} {
		t.Run(name, test)
	}
}
