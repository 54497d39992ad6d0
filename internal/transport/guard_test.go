package transport

import (
	"bytes"
	"io"
	"testing"
)

// writes records each Write.
type writes [][]byte

func (w *writes) Write(p []byte) (int, error) {
	*w = append(*w, bytes.Clone(p))
	return len(p), nil
}
func (w *writes) Read([]byte) (int, error) { return 0, io.EOF }
func (w *writes) Close() error             { return nil }

// TestGuardJoins: a frame's header and body go out together, as far as a port takes them at once, and no byte is
// changed.
func TestGuardJoins(t *testing.T) {
	header := func(kind byte, n int) []byte {
		return []byte{0, kind, 0, 0, 0, 0, 0, 1, 0, byte(n >> 16), byte(n >> 8), byte(n)}
	}
	small, large := []byte("0123456789ab"), bytes.Repeat([]byte("x"), 64<<10)
	var out writes
	g := &guard{ReadWriteCloser: &out}
	var want []byte
	for _, p := range [][]byte{header(1, 4096), header(frameData, len(small)), small, header(frameData, 0), header(frameData, len(large)), large} {
		if n, err := g.Write(p); n != len(p) || err != nil {
			t.Fatalf("Write of %d bytes: %d, %v", len(p), n, err)
		}
		want = append(want, p...)
	}
	if got := bytes.Join(out, nil); !bytes.Equal(got, want) {
		t.Error("the bytes were changed")
	}
	var sizes []int
	for _, p := range out {
		sizes = append(sizes, len(p))
	}
	if len(sizes) != 5 || sizes[1] != 24 || sizes[3] != 32<<10 {
		t.Errorf("writes of %v bytes", sizes)
	}
}
