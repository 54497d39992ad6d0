package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/image"
)

// memorySource holds layers in memory, and counts and delays their opening.
type memorySource struct {
	mu     sync.Mutex
	layers map[digest.Digest][]byte
	opened map[digest.Digest]int
	gate   chan struct{} // where set, opening waits for it
}

func newSource() *memorySource {
	return &memorySource{layers: map[digest.Digest][]byte{}, opened: map[digest.Digest]int{}}
}

func (m *memorySource) OpenLayer(ctx context.Context, l image.Layer) (io.ReadCloser, error) {
	m.mu.Lock()
	m.opened[l.DiffID]++
	raw, ok := m.layers[l.DiffID]
	gate := m.gate
	m.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if !ok {
		return nil, errdefs.ErrNotFound
	}
	if digest.FromBytes(raw) != l.DiffID {
		return io.NopCloser(io.MultiReader(bytes.NewReader(raw), &failing{errdefs.ErrDataLoss})), nil
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

// image makes an image of layers with one file each.
func (m *memorySource) image(t testing.TB, contents ...string) image.Image {
	t.Helper()
	var img image.Image
	for _, c := range contents {
		raw := makeTar(t, regular("file", c))
		id := digest.FromBytes(raw)
		m.layers[id] = raw
		img.Layers = append(img.Layers, image.Layer{DiffID: id})
	}
	img.ID = digest.FromString(strings.Join(contents, "\n"))
	return img
}

func (m *memorySource) count(id digest.Digest) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.opened[id]
}

// openForm opens a directory for layers in one form.
type openForm func(root string, source layerSource) (*Layers, error)

func asDisks(root string, source layerSource) (*Layers, error) {
	d, err := OpenDisks(root, source)
	if err != nil {
		return nil, err
	}
	return d.Layers, nil
}

// eachStore runs a test for each form that a directory of layers can have.
func eachStore(t *testing.T, test func(*testing.T, openForm)) {
	for name, open := range map[string]openForm{"disks": asDisks, "directories": OpenDirectories} {
		t.Run(name, func(t *testing.T) {
			if name == "directories" {
				needRoot(t)
			}
			test(t, open)
		})
	}
}

func (open openForm) must(t testing.TB, root string, source layerSource) *Layers {
	t.Helper()
	l, err := open(root, source)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLayers(t, l) })
	return l
}

func closeLayers(t testing.TB, l *Layers) {
	t.Helper()
	if err := l.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func openDisks(t testing.TB) *Disks {
	t.Helper()
	d, err := OpenDisks(t.TempDir(), newSource())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLayers(t, d.Layers) })
	return d
}

// look gives the root of a layer, whatever its form.
func look(t testing.TB, path string) string {
	t.Helper()
	if info, err := os.Stat(path); err != nil {
		t.Fatal(err)
	} else if info.IsDir() {
		return path
	}
	fsck(t, path)
	return mountDisk(t, path)
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() != "lock" {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestEnsure(t *testing.T) { eachStore(t, testEnsure) }

func testEnsure(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, filepath.Join(t.TempDir(), "layers"), source)
	img := source.image(t, "one", "two", "one")
	for range 2 {
		paths, err := l.Ensure(t.Context(), img)
		if err != nil || len(paths) != 3 || paths[0] != paths[2] || paths[0] == paths[1] {
			t.Fatalf("got %q, %v", paths, err)
		}
		for _, p := range paths {
			info, err := os.Stat(p)
			if err != nil || (!info.IsDir() && (info.Mode() != 0o644 || info.Size()%blockSize != 0)) {
				t.Errorf("%s: %v, %v", p, info, err)
			}
		}
	}
	if n := source.count(img.Layers[0].DiffID); n != 1 {
		t.Errorf("converted %d times", n)
	}
	if info, err := os.Stat(filepath.Dir(l.path(img.Layers[0].DiffID))); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("others can look at layers: %v, %v", info, err)
	}
}

func TestUsage(t *testing.T) { eachStore(t, testUsage) }

func testUsage(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, filepath.Join(t.TempDir(), "layers"), source)
	usage := func() size {
		t.Helper()
		bytes, inodes, err := l.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return size{bytes, inodes}
	}
	if got := usage(); got != (size{0, 1}) { // the lock
		t.Errorf("of nothing: %+v", got)
	}
	img := source.image(t, strings.Repeat("x", 100_000))
	raw := makeTar(t, regular("a", strings.Repeat("y", 50_000)), link(tar.TypeLink, "b", "a"), link(tar.TypeLink, "c", "a"))
	source.layers[digest.FromBytes(raw)] = raw
	img.Layers = append(img.Layers, image.Layer{DiffID: digest.FromBytes(raw)})
	paths, err := l.Ensure(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	most := size{500_000, 1}
	for _, p := range paths {
		if info, err := os.Stat(p); err != nil {
			t.Fatal(err)
		} else if info.IsDir() {
			most.bytes = 200_000 // what has three names counts once
			most.inodes++
		}
		most.inodes++
	}
	for range 2 {
		if got := usage(); got.inodes != most.inodes || got.bytes < 150_000 || got.bytes > most.bytes {
			t.Errorf("got %+v, want %+v at most", got, most)
		}
	}
	if err := l.Collect(t.Context(), func() (map[digest.Digest]struct{}, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	if got := usage(); got != (size{0, 1}) || len(l.sizes) != 0 {
		t.Errorf("after the last one went: %+v, %v", got, l.sizes)
	}
}

func TestEnsureFails(t *testing.T) { eachStore(t, testEnsureFails) }

func testEnsureFails(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	img := source.image(t, "good", "bad")
	source.layers[img.Layers[1].DiffID] = makeTar(t, regular("file", "else"))
	if _, err := l.Ensure(t.Context(), img); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), img.Layers[1].DiffID.String()) {
		t.Errorf("wrong content: %v", err)
	}
	hostile := makeTar(t, regular("../evil", "x"))
	id := digest.FromBytes(hostile)
	source.layers[id] = hostile
	if _, err := l.Ensure(t.Context(), image.Image{Layers: []image.Layer{{DiffID: id}}}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "../evil") {
		t.Errorf("hostile: %v", err)
	}
	if _, err := l.Ensure(t.Context(), image.Image{Layers: []image.Layer{{DiffID: "sha256:../../x"}}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no digest: %v", err)
	}
	if _, err := l.Ensure(t.Context(), image.Image{Layers: []image.Layer{{DiffID: digest.FromString("none")}}}); !errdefs.IsNotFound(err) {
		t.Errorf("no content: %v", err)
	}
	for _, name := range names(t, l.root) {
		if name != filepath.Base(l.path(img.Layers[0].DiffID)) {
			t.Errorf("left behind: %s", name)
		}
	}
}

// TestEnsureConcurrently: many want a layer, the first gives up, it is made once for all the others.
func TestEnsureConcurrently(t *testing.T) { eachStore(t, testEnsureConcurrently) }

func testEnsureConcurrently(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	img := source.image(t, "one")
	id := img.Layers[0].DiffID
	source.gate = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := l.Ensure(ctx, img); !errors.Is(err, context.Canceled) {
			t.Errorf("the one that gave up: %v", err)
		}
	})
	waiters := func(n int) {
		t.Helper()
		waitFor(t, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			f := l.flights[id]
			return (f == nil && n == 0) || (f != nil && f.waiters == n)
		})
	}
	waiters(1)
	for range 10 {
		wg.Go(func() {
			if _, err := l.Ensure(t.Context(), img); err != nil {
				t.Error(err)
			}
		})
	}
	waiters(11)
	cancel()
	waiters(10)
	close(source.gate)
	wg.Wait()
	if n := source.count(id); n != 1 {
		t.Errorf("converted %d times", n)
	}

	// With nobody left the work ends, and leaves nothing.
	source.gate = make(chan struct{})
	ctx, cancel = context.WithCancel(t.Context())
	other := source.image(t, "two")
	wg.Go(func() { _, _ = l.Ensure(ctx, other) })
	id = other.Layers[0].DiffID
	waiters(1)
	cancel()
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := names(t, l.root); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
	if _, err := l.Ensure(t.Context(), other); !errdefs.IsUnavailable(err) {
		t.Errorf("after Close: %v", err)
	}
}

// TestEnsureOtherBlob: an image whose config lies about a layer does not fail one that has this layer from a blob of its own.
func TestEnsureOtherBlob(t *testing.T) { eachStore(t, testEnsureOtherBlob) }

func testEnsureOtherBlob(t *testing.T, open openForm) {
	source := &lyingSource{memorySource: newSource(), gate: make(chan struct{})}
	l := open.must(t, t.TempDir(), source)
	right := source.image(t, "one")
	above := makeTar(t, regular("implied/file", "two")) // it waits for the layer below
	source.layers[digest.FromBytes(above)] = above
	right.Layers = append(right.Layers, image.Layer{DiffID: digest.FromBytes(above)})
	wrong := slices.Clone(right.Layers)
	right.Layers[0].Blob.Digest, wrong[0].Blob.Digest = digest.FromString("right"), digest.FromString("wrong")
	var fails, works []func() error
	for i := range wrong {
		fails, works = append(fails, l.Begin(t.Context(), wrong[:i+1])), append(works, l.Begin(t.Context(), right.Layers[:i+1]))
	}
	close(source.gate)
	var wg sync.WaitGroup
	for i := range wrong {
		wg.Go(func() {
			if err := fails[i](); i == 0 && !errdefs.IsDataLoss(err) {
				t.Errorf("the wrong one: %v", err)
			}
		})
		wg.Go(func() {
			if err := works[i](); err != nil {
				t.Errorf("layer %d of the right one: %v", i, err)
			}
		})
	}
	wg.Wait()
}

// lyingSource has one blob that does not hold what it should.
type lyingSource struct {
	*memorySource
	gate chan struct{}
}

func (s *lyingSource) OpenLayer(ctx context.Context, l image.Layer) (io.ReadCloser, error) {
	<-s.gate
	if l.Blob.Digest == digest.FromString("wrong") {
		return nil, errdefs.ErrDataLoss
	}
	return s.memorySource.OpenLayer(ctx, l)
}

// TestEnsureAgainAtTheEnd: who asks for a layer when the last of those before has just given it up gets it.
func TestEnsureAgainAtTheEnd(t *testing.T) { eachStore(t, testEnsureAgain) }

func testEnsureAgain(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	img := source.image(t, "one")
	flying := func(yes bool) {
		waitFor(t, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return (l.flights[img.Layers[0].DiffID] != nil) == yes
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	var once sync.Once
	var wg sync.WaitGroup
	write := l.form.write
	l.form.write = func(ctx context.Context, path string, open opener, inherit inheriter) (bool, error) {
		dependent, err := write(ctx, path, open, inherit)
		once.Do(func() { // all is written, and has no name yet
			cancel()
			flying(false)
			wg.Go(func() {
				if _, err := l.Ensure(t.Context(), img); err != nil {
					t.Error(err)
				}
			})
			flying(true)
		})
		return dependent, err
	}
	if _, err := l.Ensure(ctx, img); !errors.Is(err, context.Canceled) {
		t.Errorf("the one that gave up: %v", err)
	}
	wg.Wait()
	if got := names(t, l.root); len(got) != 1 {
		t.Errorf("there are %q", got)
	}
}

// waitFor polls a condition that nothing announces.
func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain")
		}
	}
}

// TestEnsureInherits: directories that a layer does not describe keep the attributes that lower layers gave them.
func TestEnsureInherits(t *testing.T) { eachStore(t, testEnsureInherits) }

func testEnsureInherits(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	add := func(entries ...tar.Header) image.Layer {
		raw := makeTar(t, entries...)
		id := digest.FromBytes(raw)
		source.layers[id] = raw
		return image.Layer{DiffID: id}
	}
	home := dir("home/user/", 0o700)
	home.Uid, home.Gid = 1000, 1000
	base := add(dir("tmp/", 0o1777), dir("home/", 0o711), home, dir("gone/", 0o700), dir("opaque/", 0o700), dir("opaque/sub/", 0o700))
	middle := add(whiteout(".wh.gone"), dir("tmp/", 0o1770), dir("opaque/", 0o750), whiteout("opaque/.wh..wh..opq"))
	top := add(regular("tmp/x", "x"), regular("home/user/new/x", "x"), regular("gone/x", "x"), regular("opaque/sub/x", "x"))
	img := image.Image{Layers: []image.Layer{base, middle, top}}
	paths, err := l.Ensure(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := l.Ensure(t.Context(), image.Image{Layers: []image.Layer{top}})
	if err != nil || alone[0] == paths[2] {
		t.Errorf("the layer by itself has the disk %q, %v", alone, err)
	}
	again, err := l.Ensure(t.Context(), img)
	if err != nil || !slices.Equal(again, paths) {
		t.Errorf("again: %q, %v", again, err)
	}
	got, without := describe(t, look(t, paths[2])), describe(t, look(t, alone[0]))
	for name, want := range map[string]string{
		"tmp": "41770 0:0 ", "home": "40711 0:0 ", "home/user": "40700 1000:1000 ", "home/user/new": "40755 0:0 ", "gone": "40755 0:0 ",
		"opaque": "40750 0:0 ", "opaque/sub": "40755 0:0 ",
	} {
		if !strings.HasPrefix(got[name], want) {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
		if !strings.HasPrefix(without[name], "40755 0:0 ") {
			t.Errorf("%s by itself: %s", name, without[name])
		}
	}
	if err := l.Collect(t.Context(), func() (map[digest.Digest]struct{}, error) { return nil, nil }); err != nil {
		t.Fatal(err)
	}
	if left := names(t, l.root); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestCollect(t *testing.T) { eachStore(t, testCollect) }

func testCollect(t *testing.T, open openForm) {
	source := newSource()
	l := open.must(t, t.TempDir(), source)
	img := source.image(t, "used", "unused", "asked for meanwhile")
	paths, err := l.Ensure(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	late := image.Image{Layers: img.Layers[2:]}
	err = l.Collect(t.Context(), func() (map[digest.Digest]struct{}, error) {
		if _, err := l.Ensure(t.Context(), late); err != nil {
			t.Error(err)
		}
		return map[digest.Digest]struct{}{img.Layers[0].DiffID: {}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true} {
		if _, err := os.Stat(paths[i]); (err == nil) != want {
			t.Errorf("layer %d: %v", i, err)
		}
	}
	broken := errors.New("broken")
	if err := l.Collect(t.Context(), func() (map[digest.Digest]struct{}, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if got := names(t, l.root); len(got) != 2 {
		t.Errorf("left: %q", got)
	}
	if _, err := l.Ensure(t.Context(), img); err != nil {
		t.Errorf("made again: %v", err)
	}
}

func TestOpenCleansUp(t *testing.T) { eachStore(t, testOpenCleansUp) }

func testOpenCleansUp(t *testing.T, open openForm) {
	root, source := t.TempDir(), newSource()
	l := open.must(t, root, source)
	paths, err := l.Ensure(t.Context(), source.image(t, "one"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(root, source); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("opened twice: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tempPrefix + "1", tempPrefix + "gone-1", "sha256-" + strings.Repeat("a", 64) + ".v0" + l.form.extension} {
		below := filepath.Join(root, name, "below")
		if err := os.Mkdir(filepath.Dir(below), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(below, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open.must(t, root, source)
	if got := names(t, root); !slices.Equal(got, []string{filepath.Base(paths[0])}) {
		t.Errorf("left: %q", got)
	}
}

// TestFullDisk converts on a file system that is too small.
func TestFullDisk(t *testing.T) { eachStore(t, testFullDisk) }

func testFullDisk(t *testing.T, open openForm) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting a small file system needs root")
	}
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "pistis-test", root).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: cannot mount a tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	source := newSource()
	l := open.must(t, root, source)
	random := make([]byte, 16<<20)
	_, _ = rand.Read(random)
	img := source.image(t, string(random))
	if _, err := l.Ensure(t.Context(), img); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
	if got := names(t, root); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if _, err := l.Ensure(t.Context(), source.image(t, "small")); err != nil {
		t.Error(err)
	}
	// Close before the file system goes.
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
