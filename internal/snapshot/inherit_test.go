package snapshot

import (
	"archive/tar"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/pistis-run/pistis/internal/image"
)

func (m *memorySource) layer(t testing.TB, entries ...tar.Header) image.Layer {
	t.Helper()
	raw := makeTar(t, entries...)
	id := digest.FromBytes(raw)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.layers[id] = raw
	return image.Layer{DiffID: id}
}

// TestInheritAttributes: extended ones too, those that do not fit into an inode and access control lists among them, through
// layers that only imply the directory; what overlays note of it is not inherited.
func TestInheritAttributes(t *testing.T) { eachStore(t, testInheritAttributes) }

func testInheritAttributes(t *testing.T, open openForm) {
	needRoot(t)
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
	rich := dir("a/rich/", 0o2751)
	rich.Uid, rich.Gid = 70000, 90000
	rich.PAXRecords = map[string]string{
		"SCHILY.xattr.user.small": "x", "SCHILY.xattr.trusted.large": strings.Repeat("y", 1000), "SCHILY.xattr.system.posix_acl_default": acl,
	}
	base := source.layer(t, dir("a/", 0o755), rich)
	layers := []image.Layer{base, source.layer(t, whiteout("a/rich/.wh..wh..opq"), regular("a/rich/1", "1")), source.layer(t, regular("a/rich/2", "2"))}
	paths, err := l.Ensure(t.Context(), image.Image{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	want := describe(t, look(t, paths[0]))["a/rich"]
	if !strings.Contains(want, "70000:90000") || !strings.Contains(want, "posix_acl_default") || !strings.Contains(want, "trusted.large") {
		t.Fatalf("the base: %s", want)
	}
	middle := describe(t, look(t, paths[1]))["a/rich"]
	if without := strings.Replace(middle, ` trusted.overlay.opaque="y"`, "", 1); without != want || without == middle {
		t.Errorf("the middle:\n got %s\nwant %s", middle, want)
	}
	if got := describe(t, look(t, paths[2]))["a/rich"]; got != want {
		t.Errorf("the top:\n got %s\nwant %s", got, want)
	}
}

// TestInheritReadsLayersOnce: however many layers imply directories, each is opened once, by as many at a time as can be.
func TestInheritReadsLayersOnce(t *testing.T) { eachStore(t, testInheritReadsOnce) }

func testInheritReadsOnce(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	layers := []image.Layer{source.layer(t, dir("d/", 0o711))}
	for i := range 20 {
		layers = append(layers, source.layer(t, regular(fmt.Sprintf("d/e%d/f", i), "x")))
	}
	paths, err := l.Ensure(t.Context(), image.Image{Layers: layers})
	if err != nil {
		t.Fatal(err)
	}
	for i, layer := range layers {
		if n := source.count(layer.DiffID); n != 1 {
			t.Errorf("layer %d was opened %d times", i, n)
		}
	}
	if got := describe(t, look(t, paths[20]))["d"]; !strings.HasPrefix(got, "40711 ") {
		t.Errorf("the directory of the uppermost: %s", got)
	}
}

// TestInheritFromLateLayers has two images share a layer that depends on what is below it, on different bases, while the turns
// are few: layers that wait for others give up their turn, and all come to an end.
func TestInheritFromLateLayers(t *testing.T) { eachStore(t, testLateLayers) }

func testLateLayers(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	shared := []image.Layer{source.layer(t, regular("d/shared", "x"))}
	for i := range 6 {
		shared = append(shared, source.layer(t, regular(fmt.Sprint("d/on-top-", i), "x")))
	}
	var images []image.Image
	for _, mode := range []int64{0o700, 0o710, 0o711, 0o750} {
		images = append(images, image.Image{Layers: append([]image.Layer{source.layer(t, dir("d/", mode))}, shared...)})
	}
	source.gate = make(chan struct{})
	var wg sync.WaitGroup
	paths := make([][]string, len(images))
	for i, img := range images {
		wg.Go(func() {
			var err error
			if paths[i], err = l.Ensure(t.Context(), img); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.flights) == len(images)+len(shared)
	})
	close(source.gate)
	wg.Wait()
	if t.Failed() {
		return
	}
	for i, want := range []string{"40700 ", "40710 ", "40711 ", "40750 "} {
		for _, path := range paths[i] {
			if got := describe(t, look(t, path))["d"]; !strings.HasPrefix(got, want) {
				t.Errorf("image %d: %s: %s, want %s", i, filepath.Base(path), got, want)
			}
		}
	}
}

// lavishLayer has every directory, each with a mebibyte of attributes.
type lavishLayer struct{}

func (lavishLayer) Close() error { return nil }

func (lavishLayer) attributes(uint32, string) (*entry, error) {
	return &entry{kind: tar.TypeDir, xattrs: map[string]string{"user.x": strings.Repeat("x", 1<<20)}}, nil
}

func (lavishLayer) children(_ uint32, w *wish) (map[string]uint32, error) {
	found := map[string]uint32{}
	for name := range w.below {
		found[name] = rootDirectory
	}
	return found, nil
}

// TestInheritBounds: what is held in memory of lower layers is bounded.
func TestInheritBounds(t *testing.T) {
	open := func(string) (lowerLayer, error) { return lavishLayer{}, nil }
	var dirs []string
	for i := range 100 {
		dirs = append(dirs, fmt.Sprint("d/", i))
	}
	if _, err := inherit(t.Context(), dirs, []string{"one"}, open); !errdefs.IsInvalidArgument(err) {
		t.Errorf("100 MiB of attributes: %v", err)
	}
	if found, err := inherit(t.Context(), dirs[:50], []string{"one", "two"}, open); err != nil || len(found) != 50 {
		t.Errorf("50 MiB of attributes: %d, %v", len(found), err)
	}
}

func TestTurns(t *testing.T) {
	turns := newTurns(2)
	come := (*turn).has
	a, b, c, d, e := turns.ask(), turns.ask(), turns.ask(), turns.ask(), turns.ask()
	turns.give(d) // leaves the queue
	if !come(a) || !come(b) || come(c) || come(e) {
		t.Fatal("not the first two")
	}
	turns.give(b)
	if !come(c) || come(d) || come(e) {
		t.Error("not the third one")
	}
	turns.give(a)
	turns.give(c)
	if !come(e) || turns.free != 1 {
		t.Errorf("the last one's turn, and then %d are free", turns.free)
	}
}

// FuzzDiskDir reads directories of a disk that was damaged: it is an error, or fewer attributes.
func FuzzDiskDir(f *testing.F) {
	rich := dir("a/b/", 0o700)
	rich.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "value", "SCHILY.xattr.trusted.y": strings.Repeat("v", 500)}
	path, err := disk(f, makeTar(f, dir("a/", 0o755), rich, regular("a/file", "x")))
	if err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	for at := range uint32(64) {
		f.Add(at*64, []byte{0xff})
	}
	damaged := filepath.Join(f.TempDir(), "damaged")
	f.Fuzz(func(t *testing.T, at uint32, change []byte) {
		raw := append([]byte(nil), whole...)
		copy(raw[int(at)%len(raw):], change)
		if err := os.WriteFile(damaged, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := inherit(context.Background(), []string{"a", "a/b", "a/file", "c/d"}, []string{damaged}, openDisk)
		if err != nil && !errdefs.IsInternal(err) {
			t.Errorf("no class: %v", err)
		}
	})
}
