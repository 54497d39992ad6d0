package tap

import (
	"errors"
	"os"
	"syscall"
	"testing"
)

func TestOpenTellsWhatIsMissing(t *testing.T) {
	if _, err := open("a-name-that-is-too-long"); !errors.Is(err, syscall.EINVAL) && os.Geteuid() == 0 {
		t.Errorf("got %v", err)
	}
}

func FuzzParseNFMessage(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 8, 0, 1, 0, 'a', 'b', 'c', 0})
	f.Add([]byte{2, 0, 0, 0, 5, 0, 1, 0, 'a'})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseNFMessage(data)
		if err == nil && m.family != data[0] {
			t.Error("family is wrong")
		}
	})
}
