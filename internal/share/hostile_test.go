package share

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startSession serves a directory in this process and returns the guest's end.
func startSession(t testing.TB, dir string) net.Conn {
	t.Helper()
	return startSessionWith(t, dir, nil)
}

// startSessionWith has memory in common with the guest.
func startSessionWith(t testing.TB, dir string, common memory) net.Conn {
	t.Helper()
	return startSessionOf(t, filesOf(t, dir), common)
}

func filesOf(t testing.TB, dir string) *files {
	t.Helper()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := newFiles(root, "/proc/self/fd", time.Second, &budget{most: 16})
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func startSessionOf(t testing.TB, fs *files, common memory) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(theirs, fs, MaxWrite, common)
		fs.close()
	}()
	t.Cleanup(func() {
		ours.Close()
		<-done
	})
	return ours
}

// request is a message as a guest sends it.
func request(op uint32, unique, node uint64, body ...[]byte) []byte {
	b := make([]byte, headerSize)
	for _, part := range body {
		b = append(b, part...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], op)
	binary.NativeEndian.PutUint64(b[8:], unique)
	binary.NativeEndian.PutUint64(b[16:], node)
	return b
}

func words(values ...uint32) (b []byte) {
	for _, v := range values {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

func initRequest() []byte { return request(opInit, 1, 0, words(7, 38, 0, 0), make([]byte, 48)) }

// exchange sends a request and returns the error and the body of the answer.
func exchange(t *testing.T, conn net.Conn, req []byte) (unix.Errno, []byte) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write(req); err != nil {
		t.Fatal(err)
	}
	head := make([]byte, replySize)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatal(err)
	}
	if got, want := binary.NativeEndian.Uint64(head[8:]), binary.NativeEndian.Uint64(req[8:]); got != want {
		t.Fatalf("answer to request %d, not to %d", got, want)
	}
	body := make([]byte, binary.NativeEndian.Uint32(head)-replySize)
	if _, err := io.ReadFull(conn, body); err != nil {
		t.Fatal(err)
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(head[4:]))), body
}

func begun(t *testing.T, dir string) net.Conn {
	t.Helper()
	conn := startSession(t, dir)
	if code, _ := exchange(t, conn, initRequest()); code != 0 {
		t.Fatalf("INIT: %v", code)
	}
	return conn
}

// outside is a share beside which there is a secret.
func outside(t *testing.T) string {
	t.Helper()
	top := t.TempDir()
	dir := filepath.Join(top, "share")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(top, "secret"), []byte("x"), 0o644),
		os.Symlink("../secret", filepath.Join(dir, "link")), os.Symlink("..", filepath.Join(dir, "up"))); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNamesStayInside(t *testing.T) {
	conn := begun(t, outside(t))
	for name, want := range map[string]unix.Errno{
		"..": unix.EINVAL, ".": unix.EINVAL, "": unix.EINVAL, "../secret": unix.EINVAL, "up/secret": unix.EINVAL, "/etc/passwd": unix.EINVAL,
		strings.Repeat("x", 256): unix.ENAMETOOLONG, "none": unix.ENOENT, ".go-fuse-epoll-hack": unix.ENOENT,
	} {
		if code, _ := exchange(t, conn, request(opLookup, 2, rootID, []byte(name+"\x00"))); code != want {
			t.Errorf("lookup of %.20q: %v, want %v", name, code, want)
		}
		for op, fixed := range map[uint32][]byte{8: words(unix.S_IFREG|0o644, 0, 0, 0), 9: words(0o755, 0), 10: nil, 11: nil, 35: words(0, 0o644, 0, 0)} {
			if want != unix.ENOENT {
				if code, _ := exchange(t, conn, request(op, 3, rootID, fixed, []byte(name+"\x00"))); code != want {
					t.Errorf("operation %d of %.20q: %v, want %v", op, name, code, want)
				}
			}
		}
	}
}

// TestLinksAreNotFollowed: a symbolic link is a file of its own that cannot be opened.
func TestLinksAreNotFollowed(t *testing.T) {
	conn := begun(t, outside(t))
	for _, name := range []string{"link", "up"} {
		code, body := exchange(t, conn, request(opLookup, 2, rootID, []byte(name+"\x00")))
		if code != 0 {
			t.Fatal(code)
		}
		node := binary.NativeEndian.Uint64(body)
		if code, _ := exchange(t, conn, request(14, 3, node, words(0, 0))); code != unix.ELOOP {
			t.Errorf("open of a link: %v", code)
		}
		if code, _ := exchange(t, conn, request(27, 3, node, words(0, 0))); code != unix.ENOTDIR {
			t.Errorf("opendir of a link: %v", code)
		}
		if code, _ := exchange(t, conn, request(opLookup, 4, node, []byte("secret\x00"))); code != unix.ENOTDIR {
			t.Errorf("lookup in a link: %v", code)
		}
	}
}

func TestWhatIsNotKnown(t *testing.T) {
	dir := outside(t)
	conn := begun(t, dir)
	none := make([]byte, 80)
	for name, tc := range map[string]struct {
		req  []byte
		want unix.Errno
	}{
		"operation":        {request(99, 2, rootID, none), unix.ENOSYS},
		"huge operation":   {request(1<<31, 2, rootID, none), unix.ENOSYS},
		"lock":             {request(33, 2, rootID, none), unix.ENOSYS},
		"ioctl":            {request(39, 2, rootID, none), unix.ENOSYS},
		"second INIT":      {initRequest(), unix.EINVAL},
		"node":             {request(3, 2, 77, make([]byte, 16)), unix.ESTALE},
		"the library's":    {request(3, 2, ^uint64(0), make([]byte, 16)), unix.ESTALE},
		"handle":           {request(opRead, 2, rootID, words(9, 0, 0, 0, 100, 0, 0, 0, 0, 0)), unix.EBADF},
		"write handle":     {request(opWrite, 2, rootID, words(9, 0, 0, 0, 4, 0, 0, 0, 0, 0), []byte("data")), unix.EBADF},
		"huge read":        {request(opRead, 2, rootID, words(9, 0, 0, 0, 1<<31, 0, 0, 0, 0, 0)), unix.EINVAL},
		"huge attribute":   {request(opGetXAttr, 2, rootID, words(1<<31, 0), []byte("user.x\x00")), unix.EINVAL},
		"short":            {request(opRead, 2, rootID), unix.EIO},
		"device":           {request(8, 2, rootID, words(unix.S_IFCHR|0o600, 0x103, 0, 0), []byte("null\x00")), unix.EPERM},
		"block device":     {request(8, 2, rootID, words(unix.S_IFBLK|0o600, 0x800, 0, 0), []byte("sda\x00")), unix.EPERM},
		"whiteout":         {request(45, 2, rootID, words(1, 0, 4, 0), []byte("link\x00x\x00")), unix.EINVAL},
		"rename to parent": {request(12, 2, rootID, words(1, 0), []byte("link\x00../x\x00")), unix.EINVAL},
		"one name of two":  {request(12, 2, rootID, words(1, 0), []byte("link")), unix.EIO},
		"ACL":              {request(21, 2, rootID, words(2, 0), []byte("system.posix_acl_access\x00xx")), unix.EOPNOTSUPP},
	} {
		if code, _ := exchange(t, conn, tc.req); code != tc.want {
			t.Errorf("%s: %v, want %v", name, code, tc.want)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "link")); err != nil {
		t.Error(err)
	}
}

// TestBadFrames: what is no message ends the session.
func TestBadFrames(t *testing.T) {
	for name, frame := range map[string][]byte{
		"empty": words(0), "short": words(39), "oversized": words(maxFrame + 1), "all ones": words(^uint32(0)),
	} {
		for _, first := range []bool{true, false} {
			conn := startSession(t, t.TempDir())
			if !first {
				if code, _ := exchange(t, conn, initRequest()); code != 0 {
					t.Fatal(code)
				}
			}
			conn.SetDeadline(time.Now().Add(time.Minute))
			conn.Write(frame)
			if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("%s (first %t): %v", name, first, err)
			}
		}
	}
	conn := startSession(t, t.TempDir())
	conn.Write(request(opLookup, 1, rootID, []byte("x\x00")))
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("no INIT: %v", err)
	}
}

// TestForgetWhileUsed: forgetting more than was looked up, the root, and what is in use.
func TestForgetWhileUsed(t *testing.T) {
	dir := outside(t)
	conn := begun(t, dir)
	code, body := exchange(t, conn, request(opLookup, 2, rootID, []byte("link\x00")))
	if code != 0 {
		t.Fatal(code)
	}
	node := binary.NativeEndian.Uint64(body)
	for _, n := range []uint64{node, rootID, node, 12345} {
		if _, err := conn.Write(request(opForget, 3, n, words(^uint32(0), ^uint32(0)))); err != nil {
			t.Fatal(err)
		}
	}
	if code, _ := exchange(t, conn, request(3, 4, rootID, make([]byte, 16))); code != 0 {
		t.Errorf("the root: %v", code)
	}
	if code, _ := exchange(t, conn, request(5, 4, node)); code != unix.ESTALE {
		t.Errorf("a forgotten node: %v", code)
	}
}

// TestMoreFilesThanDescriptors: what was closed to make room is found again, also below directories that were renamed,
// and another file under its name is not taken for it.
func TestMoreFilesThanDescriptors(t *testing.T) {
	dir := t.TempDir()
	var nodes []uint64
	conn := begun(t, dir)
	look := func(parent uint64, name string) uint64 {
		code, body := exchange(t, conn, request(opLookup, 2, parent, []byte(name+"\x00")))
		if code != 0 {
			t.Fatalf("lookup of %s: %v", name, code)
		}
		return binary.NativeEndian.Uint64(body)
	}
	for i := range 100 {
		if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i), "below"), 0o755); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, look(look(rootID, fmt.Sprint(i)), "below"))
	}
	if code, _ := exchange(t, conn, request(12, 2, rootID, words(1, 0), []byte("0\x00renamed\x00"))); code != 0 {
		t.Fatal(code)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, "1/below")), os.Mkdir(filepath.Join(dir, "1/below"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for i, node := range nodes {
		want := unix.Errno(0)
		if i == 1 {
			want = unix.ESTALE
		}
		if code, _ := exchange(t, conn, request(3, 2, node, make([]byte, 16))); code != want {
			t.Errorf("node of %d/below: %v, want %v", i, code, want)
		}
	}
}

// FuzzSession sends anything after INIT; nothing may appear outside of the share.
func FuzzSession(f *testing.F) {
	f.Add(request(opLookup, 2, rootID, []byte("link\x00")))
	f.Add(append(request(35, 2, rootID, words(2, 0o644, 0, 0), []byte("file\x00")), request(opForget, 3, 2, words(1, 0))...))
	f.Add(request(opBatchForget, 2, 0, words(^uint32(0), 0), make([]byte, 32)))
	f.Add(request(6, 2, rootID, []byte("a\x00/etc/passwd\x00")))
	f.Add(request(4, 2, rootID, make([]byte, 88)))
	f.Add(words(0, 0))
	f.Add(append(request(35, 0, rootID, words(2, 0o644, 0, 0), []byte("file\x00")), request(12, 3, rootID, words(rootID, 0), []byte("file\x00other\x00"))...))
	f.Add(append(request(9, 2, rootID, words(0o755, 0), []byte("d\x00")), request(45, 3, rootID, words(2, 0, 0, 0), []byte("d\x00d\x00"))...))
	f.Add(placed(opRead, 2, words(1, 0, 0, 0, 100, 0, 0, 0, 0, 0), 0, 100))
	f.Add(append(request(35, 2, rootID, words(2, 0o644, 0, 0), []byte("file\x00")), placed(opWrite, 3, words(1, 0, 0, 0, 9, 0, 0, 0, 0, 0), 1<<12-9, 9)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		dir := filepath.Join(top, "share")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fs := filesOf(t, dir)
		fs.ahead = true
		conn := startSessionOf(t, fs, make(memory, 1<<12))
		conn.SetDeadline(time.Now().Add(time.Minute))
		go io.Copy(io.Discard, conn)
		conn.Write(initRequest())
		conn.Write(data)
		conn.Close()
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) != 1 {
			t.Errorf("%v, %v", entries, err)
		}
	})
}
