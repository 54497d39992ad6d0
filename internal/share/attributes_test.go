package share

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// startAhead serves a directory to a guest that takes attributes ahead.
func startAhead(t *testing.T, dir string) net.Conn {
	t.Helper()
	fs := filesOf(t, dir)
	fs.ahead = true
	conn := startSessionOf(t, fs, make(memory, 1<<12))
	if code, _ := exchange(t, conn, initRequest()); code != 0 {
		t.Fatalf("INIT: %v", code)
	}
	return conn
}

// exchangeAhead sends a request and returns also what came before the answer: attributes of directories.
func exchangeAhead(t *testing.T, conn net.Conn, req []byte) (ahead map[uint64][]byte, code unix.Errno, body []byte) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write(req); err != nil {
		t.Fatal(err)
	}
	ahead = map[uint64][]byte{}
	for {
		head := make([]byte, replySize)
		if _, err := io.ReadFull(conn, head); err != nil {
			t.Fatal(err)
		}
		body = make([]byte, binary.NativeEndian.Uint32(head)-replySize)
		if _, err := io.ReadFull(conn, body); err != nil {
			t.Fatal(err)
		}
		if unique := binary.NativeEndian.Uint64(head[8:]); unique != 0 {
			if unique != binary.NativeEndian.Uint64(req[8:]) {
				t.Fatalf("answer to request %d", unique)
			}
			return ahead, unix.Errno(-int32(binary.NativeEndian.Uint32(head[4:]))), body
		}
		if binary.NativeEndian.Uint32(head[4:]) != agentv1.ShareAttributes || replySize+len(body) != agentv1.ShareAttributesSize ||
			!bytes.Equal(body[:8], req[8:16]) {
			t.Fatalf("before the answer came %x %x", head, body)
		}
		ahead[binary.NativeEndian.Uint64(body[8:])] = body[16:]
	}
}

func getAttrOf(node uint64) []byte { return request(3, 99, node, make([]byte, 16)) }

// TestAttributesAhead: with the answer to what has changed directories come their attributes, as they would be told next.
func TestAttributesAhead(t *testing.T) {
	conn := startAhead(t, t.TempDir())
	_, code, body := exchangeAhead(t, conn, request(9, 2, rootID, words(0o755, 0), []byte("sub\x00")))
	if code != 0 {
		t.Fatal(code)
	}
	sub := binary.NativeEndian.Uint64(body)
	to := func(node uint64) []byte { return binary.NativeEndian.AppendUint64(nil, node) }
	_, code, body = exchangeAhead(t, conn, request(8, 2, rootID, words(unix.S_IFREG|0o644, 0, 0, 0), []byte("first\x00")))
	if code != 0 {
		t.Fatal(code)
	}
	first := binary.NativeEndian.Uint64(body)
	for _, tc := range []struct {
		name string
		req  []byte
		dirs []uint64
	}{
		{"MKNOD", request(8, 3, rootID, words(unix.S_IFREG|0o644, 0, 0, 0), []byte("node\x00")), []uint64{rootID}},
		{"MKDIR", request(9, 4, sub, words(0o755, 0), []byte("dir\x00")), []uint64{sub}},
		{"SYMLINK", request(6, 5, sub, []byte("link\x00anywhere\x00")), []uint64{sub}},
		{"LINK", request(13, 17, sub, to(first), []byte("linked\x00")), []uint64{sub}},
		{"CREATE", request(35, 6, rootID, words(2, 0o644, 0, 0), []byte("file\x00")), []uint64{rootID}},
		{"RENAME", request(12, 7, rootID, to(sub), []byte("file\x00other\x00")), []uint64{rootID, sub}},
		{"RENAME inside", request(12, 8, sub, to(sub), []byte("other\x00again\x00")), []uint64{sub}},
		{"RENAME2", request(45, 9, sub, to(rootID), words(unix.RENAME_NOREPLACE, 0), []byte("again\x00back\x00")), []uint64{rootID, sub}},
		{"UNLINK", request(10, 10, rootID, []byte("back\x00")), []uint64{rootID}},
		{"RMDIR", request(11, 11, sub, []byte("dir\x00")), []uint64{sub}},
		{"LOOKUP", request(opLookup, 12, rootID, []byte("sub\x00")), nil},
		{"UNLINK of nothing", request(10, 13, rootID, []byte("back\x00")), nil},
		{"MKDIR of a name too many", request(9, 14, rootID, words(0o755, 0), []byte("sub\x00")), nil},
		{"RENAME without an end", request(12, 15, rootID, words(1)), nil},
		{"CREATE in a file", request(35, 16, 4711, words(2, 0o644, 0, 0), []byte("file\x00")), nil},
	} {
		ahead, code, _ := exchangeAhead(t, conn, tc.req)
		if len(ahead) != len(tc.dirs) {
			t.Errorf("%s: %v, attributes of %d directories came, not of %d", tc.name, code, len(ahead), len(tc.dirs))
		}
		for _, dir := range tc.dirs {
			if _, want := exchange(t, conn, getAttrOf(dir)); !bytes.Equal(ahead[dir], want) {
				t.Errorf("%s: of directory %d came %x, and then %x", tc.name, dir, ahead[dir], want)
			}
		}
	}
}

// TestUnanswered: a request without a number is done and has no answer, whatever it is and however it ends.
func TestUnanswered(t *testing.T) {
	dir := t.TempDir()
	conn := startAhead(t, dir)
	_, code, body := exchangeAhead(t, conn, request(35, 2, rootID, words(2, 0o644, 0, 0), []byte("file\x00")))
	if code != 0 {
		t.Fatal(code)
	}
	file, handle := binary.NativeEndian.Uint64(body), body[128:136]
	for _, req := range [][]byte{
		request(opLookup, 0, rootID, []byte("file\x00")),
		request(opLookup, 0, rootID, []byte("none\x00")),
		request(opLookup, 0, rootID, []byte("no end")),
		request(3, 0, rootID, make([]byte, 16)),
		request(9, 0, rootID, words(0o755, 0), []byte("made\x00")),
		request(opRead, 0, file, handle, words(0, 0, 100, 0, 0, 0, 0, 0)),
		placed(opRead, 0, append(bytes.Clone(handle), words(0, 0, 100, 0, 0, 0, 0, 0)...), 0, 100),
		request(4711, 0, rootID), request(opInit, 0, 0, make([]byte, 64)), request(opInterrupt, 0, 0, words(0, 0)),
		request(opForget, 0, 4711, words(1, 0)),
		append(request(18, 0, file, handle, make([]byte, 16)), request(29, 0, file, words(99, 0), make([]byte, 16))...),
	} {
		conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Write(req); err != nil {
			t.Fatal(err)
		}
		// An answer to something else would be the first to come.
		if code, _ := exchange(t, conn, getAttrOf(rootID)); code != 0 {
			t.Errorf("after %x: %v", req[:headerSize], code)
		}
	}
	if code, _ := exchange(t, conn, request(opRead, 3, file, handle, words(0, 0, 100, 0, 0, 0, 0, 0))); code != unix.EBADF {
		t.Errorf("a file that was closed is read: %v", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "made")); err != nil {
		t.Error(err)
	}
}
