package snapshot

import (
	"archive/tar"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestNamesBounded: what a layer's names occupy in memory has a bound below that of their number and their length.
func TestNamesBounded(t *testing.T) {
	long := strings.Repeat("x", maxNameBytes) // again and again, so that the test itself stays small
	names := newTree()
	for i := range maxEntries {
		err := names.add(i, &entry{kind: tar.TypeReg, name: long})
		if err == nil {
			continue
		}
		if want := maxNames / maxNameBytes; !errdefs.IsInvalidArgument(err) || i < want {
			t.Errorf("entry %d: %v", i, err)
		}
		return
	}
	t.Error("all of them are kept")
}
