package snapshot

import (
	"archive/tar"
	"fmt"
	"io"
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

// richDir has attributes of a size.
type richDir struct{ size int }

func (d richDir) attributes() (*entry, error) {
	return &entry{kind: tar.TypeDir, xattrs: map[string]string{"user.x": strings.Repeat("x", d.size)}}, nil
}

func (d richDir) children(names map[string]*wish) (map[string]lowerDir, error) {
	found := map[string]lowerDir{}
	for name := range names {
		found[name] = d
	}
	return found, nil
}

func TestInheritedBounded(t *testing.T) {
	var dirs []string
	for i := range 65 {
		dirs = append(dirs, fmt.Sprintf("dir%d", i))
	}
	for size, fails := range map[int]bool{1000: false, maxInherited / 64: true} {
		open := func(string) (lowerDir, io.Closer, error) { return richDir{size}, io.NopCloser(nil), nil }
		found, err := inherit(t.Context(), dirs, []string{"lower"}, open)
		if fails != errdefs.IsInvalidArgument(err) || !fails && len(found) != len(dirs) {
			t.Errorf("%d bytes each: %d directories, %v", size, len(found), err)
		}
	}
}
