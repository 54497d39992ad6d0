package transport

import (
	"bytes"
	"io"
	"testing"
)

// FuzzGuard: whatever arrives, in whatever pieces, is judged in the same way, and no frame that yamux must
// not see passes.
func FuzzGuard(f *testing.F) {
	f.Add([]byte{0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0}, uint8(3))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 'h', 'i', 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, uint8(1))
	f.Add([]byte{0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}, uint8(12))
	f.Fuzz(func(t *testing.T, wire []byte, piece uint8) {
		whole := &guard{}
		wholeErr := whole.scan(wire)
		pieces := &guard{}
		var piecesErr error
		for rest := wire; len(rest) > 0 && piecesErr == nil; {
			n := min(int(piece)+1, len(rest))
			piecesErr = pieces.scan(rest[:n])
			rest = rest[n:]
		}
		if (wholeErr == nil) != (piecesErr == nil) {
			t.Fatalf("at once: %v, in pieces of %d: %v", wholeErr, piece, piecesErr)
		}
		if wholeErr == nil && (whole.have != pieces.have || whole.body != pieces.body) {
			t.Fatal("the state depends on the pieces")
		}
	})
}

// FuzzHybridReply: a reply is decoded without reading past its line feed, or refused within its bound.
func FuzzHybridReply(f *testing.F) {
	f.Add([]byte("OK 1073741824\nrest"))
	f.Add([]byte("OK \n"))
	f.Add(bytes.Repeat([]byte("9"), 100))
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := bytes.NewReader(wire)
		_, err := readHybridReply(r)
		read := len(wire) - r.Len()
		if read > maxHybridReply {
			t.Fatalf("read %d bytes", read)
		}
		if err == nil && wire[read-1] != '\n' {
			t.Fatalf("accepted %q", wire[:read])
		}
	})
}

// FuzzPort: the header of a stream and the greeting of a pipe.
func FuzzPort(f *testing.F) {
	f.Add([]byte{0, 0, 4, 0})
	f.Add([]byte(greeting))
	f.Fuzz(func(t *testing.T, wire []byte) {
		port, err := readUint32(bytes.NewReader(wire))
		if (err == nil) != (len(wire) >= 4) {
			t.Fatalf("%d bytes: %v", len(wire), err)
		}
		var again bytes.Buffer
		if err == nil && (writeUint32(&again, port) != nil || !bytes.Equal(again.Bytes(), wire[:4])) {
			t.Fatalf("port %d became %x", port, again.Bytes())
		}
		err = greetGuest(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(wire), io.Discard})
		if (err == nil) != bytes.HasPrefix(wire, []byte(greeting)) {
			t.Fatalf("greeting %q: %v", wire, err)
		}
	})
}
