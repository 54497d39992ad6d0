package share_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	guestv1 "github.com/pistis-run/pistis/api/agent/v1"
	guest "github.com/pistis-run/pistis/internal/agent/share"
	"github.com/pistis-run/pistis/internal/share"
	"github.com/pistis-run/pistis/internal/transport"
)

// The test binary is the server, and the guest, too: a process that serves its own mount may wait for itself.
const (
	serverArg  = "share-server"
	memorySize = 3 * guestv1.MaxShareWrite / 2
	guestArg   = "guest"
	operateArg = "operate"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serverArg {
		os.Exit(share.Main(os.Stderr))
	}
	if len(os.Args) == 5 && os.Args[1] == guestArg {
		os.Exit(relay(os.Args[2], os.Args[3] == "file", os.Args[4] == "memory"))
	}
	if len(os.Args) == 4 && os.Args[1] == operateArg {
		os.Exit(operate(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

// openFile is a guest's memory that needs no drivers.
type openFile struct{ *os.File }

func (openFile) Ready() bool { return true }

// relay mounts what is served over descriptor 3, says so, and relays until its standard input ends and it has unmounted.
// Descriptor 4 may be memory that the server has too.
func relay(point string, file, common bool) int {
	conn, err := net.FileConn(os.NewFile(3, "stream"))
	if err != nil {
		panic(err)
	}
	var memory *guest.Memory
	if common {
		memory = guest.NewMemory(openFile{os.NewFile(4, "memory")}, memorySize)
	}
	m, err := guest.New(point, file, transport.NewEagerness(2), memory)
	if err != nil {
		panic(err)
	}
	fmt.Println("mounted")
	unmounted := make(chan error, 1)
	go func() {
		io.Copy(io.Discard, os.Stdin)
		err := m.Unmount()
		m.Close() // a mount namespace that was just made elsewhere may have a copy of it
		unmounted <- err
	}()
	err = m.Relay(conn, true)
	err = errors.Join(err, <-unmounted, m.Remove())
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		return 1
	}
	return 0
}

func startHost(t *testing.T) *share.Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: a share server makes mounts: it needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("SKIPPED: this kernel has no FUSE")
	}
	h, err := share.Start(t.Context(), []string{"/proc/self/exe", serverArg}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// mount serves a share and mounts it as a guest would, on this machine.
func mount(t *testing.T, h *share.Host, s share.Share) (string, *share.Served) {
	t.Helper()
	s.Attributes = true
	served, err := h.Serve(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return mountOver(t, s, served, guestEnd(t, served, s.Handed)), served
}

// mountOver mounts what is served, over a stream that it closes.
func mountOver(t *testing.T, s share.Share, served *share.Served, stream *os.File) string {
	t.Helper()
	defer stream.Close()
	point := filepath.Join(t.TempDir(), "mnt")
	kind := "directory"
	if served.File {
		kind = "file"
	}
	cmd := exec.Command("/proc/self/exe", guestArg, point, kind, "")
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, []*os.File{stream}
	if s.Memory != nil {
		cmd.Args[len(cmd.Args)-1] = "memory"
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.Memory)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		if err := served.Close(); err != nil {
			t.Error(err)
		}
	})
	return point
}

// guestEnd is the stream for a guest: the served one, or one whose other end the server got.
func guestEnd(t *testing.T, served *share.Served, handed bool) *os.File {
	t.Helper()
	if !handed {
		stream, err := served.Stream.File()
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	host := os.NewFile(uintptr(fds[0]), "host")
	defer host.Close()
	conn, err := net.FileConn(host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if taken, err := served.Hand(conn); err != nil || !taken {
		t.Fatalf("a socket is taken: %v, %v", taken, err)
	}
	return os.NewFile(uintptr(fds[1]), "guest")
}

// TestHanded: a server that was given a socket talks over it, and says on the share's stream when that ends, whoever ends it.
func TestHanded(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	t.Run("mounted", func(t *testing.T) {
		mnt, _ := mount(t, h, share.Share{Path: dir, Valid: time.Second, Handed: true})
		if err := os.WriteFile(filepath.Join(mnt, "a"), make([]byte, 2<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(filepath.Join(dir, "a")); err != nil || info.Size() != 2<<20 {
			t.Errorf("on the host: %v, %v", info, err)
		}
	})
	serve := func(t *testing.T) *share.Served {
		served, err := h.Serve(t.Context(), share.Share{Path: dir, Valid: time.Second, Handed: true})
		if err != nil {
			t.Fatal(err)
		}
		return served
	}
	t.Run("ended by the guest", func(t *testing.T) {
		served := serve(t)
		guestEnd(t, served, true).Close()
		if b, err := io.ReadAll(served.Stream); err != nil || len(b) == 0 {
			t.Errorf("the stream says %v, %v", b, err)
		}
		if err := served.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("ended by the host", func(t *testing.T) {
		served := serve(t)
		end := guestEnd(t, served, true)
		defer end.Close()
		if err := served.Close(); err != nil {
			t.Error(err)
		}
		if n, err := end.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("the guest reads %d bytes, %v", n, err)
		}
	})
	t.Run("never handed", func(t *testing.T) {
		if err := serve(t).Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCommonMemory: large reads and writes, of which there are more at once than the memory has pieces, are what they would be
// without it, and so are small ones, ends of files and errors.
func TestCommonMemory(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	fd, err := unix.MemfdCreate("common", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	memory := os.NewFile(uintptr(fd), "common")
	defer memory.Close()
	if err := memory.Truncate(memorySize); err != nil {
		t.Fatal(err)
	}
	mnt, _ := mount(t, h, share.Share{Path: dir, Valid: time.Second, Memory: memory})
	var work sync.WaitGroup
	for i, size := range []int{1, 8<<10 - 1, 8 << 10, 300_001, 512 << 10, 5<<20 + 7} {
		work.Go(func() {
			content := make([]byte, size)
			rand.NewChaCha8([32]byte{byte(i)}).Read(content)
			written, given := filepath.Join(mnt, fmt.Sprint("written", i)), fmt.Sprint("given", i)
			if err := errors.Join(os.WriteFile(written, content, 0o644), os.WriteFile(filepath.Join(dir, given), content, 0o644)); err != nil {
				t.Error(err)
			}
			for _, path := range []string{filepath.Join(dir, filepath.Base(written)), filepath.Join(mnt, given)} {
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s: %d bytes, %v; want %d of which all are the same", path, len(got), err, size)
				}
			}
		})
	}
	work.Wait()
	used := make([]byte, memorySize)
	if _, err := memory.ReadAt(used, 0); err != nil || bytes.Count(used, []byte{0}) == memorySize {
		t.Errorf("nothing passed through the memory: %v", err)
	}
	f, err := os.OpenFile(filepath.Join(mnt, "written5"), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := f.ReadAt(make([]byte, 512<<10), 5<<20); n != 7 || err != io.EOF {
		t.Errorf("the end of a file: %d bytes, %v", n, err)
	}
	if n, err := f.ReadAt(make([]byte, 512<<10), 6<<20); n != 0 || err != io.EOF {
		t.Errorf("beyond the end of a file: %d bytes, %v", n, err)
	}
}

func TestHost(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	mnt, _ := mount(t, h, share.Share{Path: dir, Valid: time.Second})
	if b, err := os.ReadFile(filepath.Join(mnt, "a")); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	file, _ := mount(t, h, share.Share{Path: filepath.Join(dir, "a")})
	if b, err := os.ReadFile(file); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
}

// TestLockWaiters: more processes wait for a lock than a share has workers, and who holds it works on and unlocks last.
func TestLockWaiters(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	mnt, _ := mount(t, h, share.Share{Path: dir, Valid: time.Second})
	open := func() *os.File {
		f, err := os.OpenFile(filepath.Join(mnt, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for name, lock := range map[string]func(f *os.File, take bool) error{
		"flock": func(f *os.File, take bool) error {
			if take {
				return unix.Flock(int(f.Fd()), unix.LOCK_EX)
			}
			return unix.Flock(int(f.Fd()), unix.LOCK_UN)
		},
		"fcntl": func(f *os.File, take bool) error {
			kind := int16(unix.F_UNLCK)
			if take {
				kind = unix.F_WRLCK
			}
			return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: kind, Len: 1})
		},
	} {
		holder := open()
		defer holder.Close()
		if err := lock(holder, true); err != nil {
			t.Fatal(name, err)
		}
		const waiters = 80
		var waiting, done sync.WaitGroup
		for range waiters {
			f := open()
			waiting.Add(1)
			done.Go(func() {
				defer f.Close()
				waiting.Done()
				if err := errors.Join(lock(f, true), lock(f, false)); err != nil {
					t.Error(name, err)
				}
			})
		}
		waiting.Wait()
		for i := range 100 {
			if _, err := holder.WriteAt([]byte("held"), int64(i)); err != nil {
				t.Fatal(name, err)
			}
			if _, err := os.Stat(filepath.Join(mnt, fmt.Sprint("none", i))); !errors.Is(err, os.ErrNotExist) {
				t.Fatal(name, err)
			}
		}
		if err := errors.Join(holder.Sync(), lock(holder, false)); err != nil {
			t.Fatal(name, err)
		}
		done.Wait()
	}
}
