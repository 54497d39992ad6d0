package readahead

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestReadAhead(t *testing.T) {
	broken := errors.New("broken")
	for _, size := range []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 7*chunkSize + 3} {
		want := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		for name, source := range map[string]io.Reader{
			"whole":    bytes.NewReader(want),
			"halves":   iotest.HalfReader(bytes.NewReader(want)),
			"with EOF": iotest.DataErrReader(bytes.NewReader(want)),
		} {
			r := New(source)
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %s: got %d, %v", size, name, len(got), err)
			}
			r.Close()
		}
		r := New(io.MultiReader(bytes.NewReader(want), iotest.ErrReader(broken)))
		got, err := io.ReadAll(r)
		if !errors.Is(err, broken) || !bytes.Equal(got, want) {
			t.Errorf("%d bytes and an error: got %d, %v", size, len(got), err)
		}
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, broken) {
			t.Errorf("again: %v", err)
		}
		r.Close()
	}
}

// TestReadAheadCloses ends a reader that has more to come, wherever it stands: the goroutine is joined.
func TestReadAheadCloses(t *testing.T) {
	for _, n := range []int64{0, 1, chunkSize, 3 * chunkSize} {
		endless := io.LimitReader(repeating{}, 1<<40)
		r := New(endless)
		if _, err := io.CopyN(io.Discard, r, n); err != nil {
			t.Error(err)
		}
		r.Close()
	}
	r := New(strings.NewReader("x"))
	r.Close()
}

type repeating struct{}

func (repeating) Read(p []byte) (int, error) { return len(p), nil }
