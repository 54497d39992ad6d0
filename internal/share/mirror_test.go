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
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// watchedSession serves a watched directory to this test, which plays the guest.
func watchedSession(t *testing.T, dir string) net.Conn {
	t.Helper()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := newFiles(root, "/proc/self/fd", 0, &budget{most: 16})
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWatched(fs)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = serve(theirs, w, MaxWrite, nil)
		w.close()
	}()
	t.Cleanup(func() {
		ours.Close()
		<-done
	})
	if code, _ := exchange(t, ours, initRequest()); code != 0 {
		t.Fatalf("INIT: %v", code)
	}
	return ours
}

// nextChange reads what the guest is told.
func nextChange(t *testing.T, conn net.Conn) *agentv1.ShareChange {
	t.Helper()
	conn.SetDeadline(time.Now().Add(time.Minute))
	head := make([]byte, replySize)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatal(err)
	}
	if code, unique := binary.NativeEndian.Uint32(head[4:]), binary.NativeEndian.Uint64(head[8:]); code != agentv1.ShareChanged || unique != 0 {
		t.Fatalf("code %#x, unique %d: no change", code, unique)
	}
	body := make([]byte, binary.NativeEndian.Uint32(head)-replySize)
	if _, err := io.ReadFull(conn, body); err != nil {
		t.Fatal(err)
	}
	c := &agentv1.ShareChange{}
	if err := proto.Unmarshal(body, c); err != nil {
		t.Fatal(err)
	}
	return c
}

// repeating makes a request one of the repeater's.
func repeating(req []byte) []byte {
	binary.NativeEndian.PutUint32(req[32:], agentv1.ShareRepeater)
	return req
}

func repeated() []byte { return request(opNotifyReply, 0, 0) }

func nodeOf(t *testing.T, conn net.Conn, req []byte) uint64 {
	t.Helper()
	code, body := exchange(t, conn, req)
	if code != 0 {
		t.Fatalf("operation %d: %v", opcode(req), code)
	}
	return binary.NativeEndian.Uint64(body)
}

// TestRepeatedChanges: what the repeater asks for shows the guest what it was told and changes nothing on the host.
func TestRepeatedChanges(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Mkdir(at("..v1"), 0o755), os.WriteFile(at("..v1/a"), []byte("1"), 0o644), os.Symlink("..v1", at("..data"))); err != nil {
		t.Fatal(err)
	}
	conn := watchedSession(t, dir)
	look := func(dir uint64, name string) []byte { return request(opLookup, 2, dir, []byte(name+"\x00")) }
	v1 := nodeOf(t, conn, look(rootID, "..v1"))
	a := nodeOf(t, conn, look(v1, "a"))
	link := nodeOf(t, conn, look(rootID, "..data"))
	if err := errors.Join(os.Mkdir(at("..v2"), 0o755), os.Symlink("..v2", at("new")), os.Rename(at("new"), at("..data")), os.RemoveAll(at("..v1"))); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for !seen["REMOVE ..v1"] {
		c := nextChange(t, conn)
		name := string(c.Path)
		seen[strings.TrimSpace(fmt.Sprintf("%v %s %s", c.Kind, name, c.To))] = true
		switch {
		case c.Kind == agentv1.ShareChange_MAKE:
			if code, _ := exchange(t, conn, repeating(look(rootID, name))); code != unix.ENOENT {
				t.Errorf("%s before it is made: %v", name, code)
			}
			make := repeating(request(9, 3, rootID, words(0o755, 0), []byte(name+"\x00")))
			if c.Mode == unix.S_IFLNK {
				make = repeating(request(6, 3, rootID, []byte(name+"\x00?\x00")))
			}
			made := nodeOf(t, conn, make)
			if got := nodeOf(t, conn, repeating(look(rootID, name))); got != made {
				t.Errorf("%s is node %d and was made as %d", name, got, made)
			}
		case c.Kind == agentv1.ShareChange_RENAME:
			if got := nodeOf(t, conn, repeating(look(rootID, string(c.To)))); got != link {
				t.Errorf("what is replaced is node %d, want %d", got, link)
			}
			if code, _ := exchange(t, conn, repeating(request(12, 4, rootID, words(1, 0), []byte(name+"\x00"+string(c.To)+"\x00")))); code != 0 {
				t.Errorf("rename: %v", code)
			}
		case name == "..v1/a":
			if got := nodeOf(t, conn, repeating(look(v1, "a"))); got != a || nodeOf(t, conn, repeating(look(rootID, "..v1"))) != v1 {
				t.Errorf("the removed file is node %d, want %d", got, a)
			}
			if code, _ := exchange(t, conn, repeating(request(10, 5, v1, []byte("a\x00")))); code != 0 {
				t.Errorf("unlink: %v", code)
			}
		}
		conn.Write(repeated())
	}
	for _, want := range []string{"MAKE ..v2", "RENAME ..data_tmp ..data", "REMOVE ..v1/a"} {
		if !seen[want] {
			t.Errorf("the guest was not told %q but %v", want, seen)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("on the host: %v, %v", entries, err)
	}
}

// TestGoneWithoutItsDirectory: a file whose directory the guest has forgotten is found in the attic.
func TestGoneWithoutItsDirectory(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "v1/sub"), 0o755), os.WriteFile(filepath.Join(dir, "v1/sub/a"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	conn := watchedSession(t, dir)
	look := func(dir uint64, name string) []byte { return request(opLookup, 2, dir, []byte(name+"\x00")) }
	v1 := nodeOf(t, conn, look(rootID, "v1"))
	sub := nodeOf(t, conn, look(v1, "sub"))
	a := nodeOf(t, conn, look(sub, "a"))
	conn.Write(request(opForget, 0, sub, words(1, 0)))
	for code := unix.Errno(0); code != unix.ESTALE; { // FORGET has no answer
		code, _ = exchange(t, conn, request(3, 2, sub, make([]byte, 16)))
	}
	if err := os.RemoveAll(filepath.Join(dir, "v1")); err != nil {
		t.Fatal(err)
	}
	c := nextChange(t, conn)
	top, name, ok := strings.Cut(string(c.Path), "/")
	if c.Kind != agentv1.ShareChange_REMOVE || !ok {
		t.Fatalf("told %v", c)
	}
	if code, _ := exchange(t, conn, look(rootID, top)); code != unix.ENOENT {
		t.Errorf("the attic is there for everybody: %v", code)
	}
	if got := nodeOf(t, conn, repeating(look(nodeOf(t, conn, repeating(look(rootID, top))), name))); got != a {
		t.Errorf("node %d, want %d", got, a)
	}
	conn.Write(repeated())
	if c := nextChange(t, conn); string(c.Path) != "v1" {
		t.Errorf("told %v", c)
	}
}

// TestGuestThatRepeatsNothing: answers that nobody asked for, none at all, and repetitions of nothing.
func TestGuestThatRepeatsNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	conn := watchedSession(t, dir)
	for range 10 {
		conn.Write(repeated())
	}
	for name, tc := range map[string]struct {
		req  []byte
		want unix.Errno
	}{
		"rename of nothing": {request(12, 2, rootID, words(1, 0), []byte("none\x00x\x00")), unix.ENOENT},
		"rename elsewhere":  {request(12, 2, rootID, words(77, 0), []byte("file\x00x\x00")), unix.ENOENT},
		"made elsewhere":    {request(9, 2, 77, words(0o755, 0), []byte("x\x00")), unix.EPERM},
		"made above":        {request(9, 2, rootID, words(0o755, 0), []byte("..\x00")), unix.EPERM},
		"lookup elsewhere":  {request(opLookup, 2, 77, []byte("file\x00")), unix.ENOENT},
		"removed":           {request(10, 2, rootID, []byte("file\x00")), 0},
		"a device":          {request(8, 2, rootID, words(unix.S_IFCHR|0o600, 0x103, 0, 0), []byte("null\x00")), 0},
	} {
		conn.Write(repeating(tc.req))
		if code := answerTo(t, conn, 2); code != tc.want {
			t.Errorf("%s: %v, want %v", name, code, tc.want)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("on the host: %v, %v", entries, err)
	}
}

// answerTo is the error with which a request was answered; changes that are told meanwhile are left alone.
func answerTo(t *testing.T, conn net.Conn, unique uint64) unix.Errno {
	t.Helper()
	conn.SetDeadline(time.Now().Add(time.Minute))
	for {
		head := make([]byte, replySize)
		if _, err := io.ReadFull(conn, head); err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, conn, int64(binary.NativeEndian.Uint32(head)-replySize)); err != nil {
			t.Fatal(err)
		}
		if binary.NativeEndian.Uint64(head[8:]) == unique {
			return unix.Errno(-int32(binary.NativeEndian.Uint32(head[4:])))
		}
	}
}
