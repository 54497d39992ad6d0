package share

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/transport"
)

// placed is a request of a guest that says where in memory its data is.
func placed(op uint32, unique uint64, body []byte, offset, length uint32) []byte {
	b := request(op, unique, rootID, body, words(offset, length))
	binary.NativeEndian.PutUint32(b, uint32(len(b))|agentv1.ShareInMemory)
	return b
}

// about is the body of a request to read or to write.
func about(handle, size uint32) []byte { return words(handle, 0, 0, 0, size, 0, 0, 0, 0, 0) }

func created(t *testing.T, conn net.Conn) (handle uint32) {
	t.Helper()
	code, body := exchange(t, conn, request(35, 2, rootID, words(unix.O_RDWR, 0o644, 0, 0), []byte("file\x00")))
	if code != 0 {
		t.Fatal(code)
	}
	return binary.NativeEndian.Uint32(body[128:]) // after what a lookup answers
}

func TestPlacedData(t *testing.T) {
	dir, common := t.TempDir(), make(memory, 4<<20)
	conn := startSessionWith(t, dir, common)
	if code, _ := exchange(t, conn, initRequest()); code != 0 {
		t.Fatal(code)
	}
	handle := created(t, conn)
	const at, size = 2<<20 + 4096, 100_000
	content := bytes.Repeat([]byte("0123456789"), size/10)
	copy(common[at:], content)
	code, body := exchange(t, conn, placed(opWrite, 3, about(handle, size), at, size))
	if code != 0 || binary.NativeEndian.Uint32(body) != size {
		t.Fatalf("write: %v, %v", code, body)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	if _, err := conn.Write(placed(opRead, 4, about(handle, 2*size), 4096, 2*size)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, replySize+agentv1.ShareCount)
	if _, err := io.ReadFull(conn, answer); err != nil {
		t.Fatal(err)
	}
	if want := append(words(agentv1.ShareInMemory|uint32(len(answer)), 0, 4, 0), words(size)...); !bytes.Equal(answer, want) {
		t.Errorf("read is answered with %v, want %v", answer, want)
	}
	if !bytes.Equal(common[4096:4096+size], content) || !bytes.Equal(common[4096+size:4096+2*size], make([]byte, size)) {
		t.Error("what was read is not where it should be, or more than that")
	}
	for name, tc := range map[string]struct {
		req  []byte
		want unix.Errno
	}{
		"handle":       {placed(opRead, 5, about(99, size), 0, size), unix.EBADF},
		"write handle": {placed(opWrite, 5, about(99, size), 0, size), unix.EBADF},
		"no room":      {placed(opRead, 5, about(handle, size), 0, size-1), unix.EINVAL},
		"no place":     {placed(opRead, 5, about(handle, size), 4<<20, 0), unix.EINVAL},
		"huge":         {placed(opRead, 5, about(handle, 1<<31), 0, size), unix.EINVAL},
	} {
		if code, _ := exchange(t, conn, tc.req); code != tc.want {
			t.Errorf("%s: %v, want %v", name, code, tc.want)
		}
	}
	// What is said to be written and is not there is not taken from beside it.
	code, body = exchange(t, conn, placed(opWrite, 6, about(handle, size), at, 10))
	if code != 0 || binary.NativeEndian.Uint32(body) != 10 {
		t.Errorf("write of more than there is: %v, %v", code, body)
	}
}

// TestCutMemory: a VMM that cuts the memory has its guest's requests fail, and no more.
func TestCutMemory(t *testing.T) {
	fd, err := unix.MemfdCreate("common", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const size = 1 << 20
	if err := unix.Ftruncate(fd, size); err != nil {
		t.Fatal(err)
	}
	common, err := mapMemory(fd)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	conn := startSessionWith(t, dir, common)
	if code, _ := exchange(t, conn, initRequest()); code != 0 {
		t.Fatal(code)
	}
	handle := created(t, conn)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), make([]byte, size), 0), unix.Ftruncate(fd, 4096)); err != nil {
		t.Fatal(err)
	}
	for _, op := range []uint32{opRead, opWrite} {
		if code, _ := exchange(t, conn, placed(op, 3, about(handle, 100_000), 8192, 100_000)); code != unix.EIO {
			t.Errorf("operation %d: %v", op, code)
		}
	}
	if code, body := exchange(t, conn, request(opRead, 4, rootID, about(handle, 4096))); code != 0 || len(body) != 4096 {
		t.Errorf("data in the message: %v, %d bytes", code, len(body))
	}
	if err := unix.Ftruncate(fd, 0); err != nil {
		t.Fatal(err)
	}
	if m, err := mapMemory(fd); err != nil || len(m) != transport.MemorySize {
		t.Errorf("%d bytes of nothing are mapped, %v", len(m), err)
	}
}

// TestBadPlaces: a message whose data is nowhere ends the session.
func TestBadPlaces(t *testing.T) {
	const size = 1 << 20
	for name, tc := range map[string]struct {
		common memory
		frame  []byte
	}{
		"no memory":      {nil, placed(opRead, 2, about(1, 100), 0, 100)},
		"beyond the end": {make(memory, size), placed(opRead, 2, about(1, 100), size-99, 100)},
		"far beyond":     {make(memory, size), placed(opRead, 2, about(1, 100), ^uint32(0), 100)},
		"longer than it": {make(memory, size), placed(opWrite, 2, about(1, 100), 100, ^uint32(0))},
		"too long":       {make(memory, size), placed(opWrite, 2, about(1, 100), 0, MaxWrite+1)},
		"operation":      {make(memory, size), placed(opLookup, 2, about(1, 100), 0, 100)},
		"short":          {make(memory, size), placed(opRead, 2, nil, 0, 100)},
		"long":           {make(memory, size), placed(opRead, 2, make([]byte, 48), 0, 100)},
	} {
		conn := startSessionWith(t, t.TempDir(), tc.common)
		if code, _ := exchange(t, conn, initRequest()); code != 0 {
			t.Fatal(code)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		conn.Write(tc.frame)
		if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
	conn := startSessionWith(t, t.TempDir(), make(memory, size))
	first := initRequest()
	first[3] |= 0x80
	conn.Write(first)
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("INIT: %v", err)
	}
}
