package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/image"
)

// TestDirectoryHoles: zeros take no room, wherever they are, and all is read back as it was.
func TestDirectoryHoles(t *testing.T) {
	needRoot(t)
	const size = 3 << 30
	h := regular("huge", "")
	h.Size = size
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	marks := map[int64]string{1 << 30: "middle"}
	path := filepath.Join(t.TempDir(), "layer")
	_, err := writeDirectory(t.Context(), path, func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(head.Bytes()), io.LimitReader(&marked{marks: marks}, size), bytes.NewReader(make([]byte, 1024)))), nil
	}, nothingBelow)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(path, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || info.Size() != size || info.Sys().(*syscall.Stat_t).Blocks > 1<<10 {
		t.Errorf("%+v, %v", info, err)
	}
	got := make([]byte, 10)
	if _, err := f.ReadAt(got, 1<<30-2); err != nil || string(got) != "\x00\x00middle\x00\x00" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestDirectoryAttributes: what the kernel keeps from files of a kind stops no layer, what a file system cannot store does.
func TestDirectoryAttributes(t *testing.T) {
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x04\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
	symlink := link(tar.TypeSymlink, "l", "x")
	fifo := tar.Header{Typeflag: tar.TypeFifo, Name: "f", Mode: 0o600, ModTime: mtime}
	for _, h := range []*tar.Header{&symlink, &fifo} {
		h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "v", "SCHILY.xattr.trusted.x": "v"}
	}
	symlink.PAXRecords["SCHILY.xattr.system.posix_acl_access"] = acl
	root, err := directoryOf(t, makeTar(t, symlink, fifo))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"l", "f"} {
		if got := xattrsOf(t, filepath.Join(root, name)); got != ` trusted.x="v"` {
			t.Errorf("%s has%s", name, got)
		}
	}
	big := regular("b", "")
	big.PAXRecords["SCHILY.xattr.user.x"] = strings.Repeat("v", 100_000)
	if _, err := directoryOf(t, makeTar(t, big)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"user.x"`) {
		t.Errorf("a large attribute: %v", err)
	}
}

const killedDir = "SNAPSHOT_TEST_KILLED_DIR"

// TestKilled kills a process in the middle of a layer: the next one finds nothing of it, and makes the layer.
func TestKilled(t *testing.T) {
	if dir := os.Getenv(killedDir); dir != "" {
		extractForEver(t, dir)
		return
	}
	needRoot(t)
	root := filepath.Join(t.TempDir(), "layers")
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), killedDir+"="+root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	left := names(t, root)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if len(left) != 1 || !strings.HasPrefix(left[0], tempPrefix) {
		t.Errorf("while it was made: %q", left)
	}
	source := newSource()
	l := openForm(OpenDirectories).must(t, root, source)
	if got := names(t, root); len(got) != 0 {
		t.Errorf("found: %q", got)
	}
	img := source.image(t, "content")
	paths, err := l.Ensure(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, root); !slices.Equal(got, []string{filepath.Base(paths[0])}) {
		t.Errorf("made: %q", got)
	}
}

// extractForEver makes a layer that does not come to its end, and says so once a file of it is there.
func extractForEver(t *testing.T, root string) {
	raw := makeTar(t, regular("a", "whole"), regular("b", "not all of it"))
	id := digest.FromBytes(raw)
	l, err := OpenDirectories(root, stuckSource(raw[:1024+512+4]))
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Ensure(t.Context(), image.Image{Layers: []image.Layer{{DiffID: id}}})
	t.Fatal("it came to an end", err)
}

// stuckSource is a layer's beginning. Whoever wants more waits for ever, after a byte on standard output.
type stuckSource []byte

func (s stuckSource) OpenLayer(context.Context, image.Layer) (io.ReadCloser, error) {
	return io.NopCloser(io.MultiReader(bytes.NewReader(s), stuck{})), nil
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) {
	_, _ = os.Stdout.Write([]byte("!"))
	select {}
}

// FuzzExtract: whatever a tar holds, it touches nothing but the layer's own directory, and errors have a class.
func FuzzExtract(f *testing.F) {
	needRoot(f)
	f.Add(makeTar(f, dir("a/", 0o755), regular("a/b", "content"), link(tar.TypeLink, "c", "a/b"), link(tar.TypeSymlink, "d", "/etc"), whiteout("a/.wh.x")))
	f.Add(makeTar(f, regular("a", "1"), link(tar.TypeLink, "l", "a"), regular("a", "2"), whiteout(".wh.b"), dir("b", 0o700), whiteout("b/.wh..wh..opq")))
	f.Add(makeTar(f, link(tar.TypeSymlink, "a", "../sentinel"), regular("a", "x"), link(tar.TypeSymlink, "b", ".."), link(tar.TypeLink, "c", "b")))
	f.Add(makeTar(f, dir("a", 0o755), regular("a/b/c", "x"), regular("a", "y"), dir("a", 0o755), whiteout(".wh.a"), whiteout(".wh.z"), regular("z/y", "")))
	f.Add(makeTar(f, regular("../sentinel", "evil")))
	top := f.TempDir()
	sentinel := filepath.Join(top, "sentinel")
	if err := os.WriteFile(sentinel, []byte("sentinel"), 0o600); err != nil {
		f.Fatal(err)
	}
	before := stateOf(f, sentinel)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			t.Skip()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		path := filepath.Join(top, "layer")
		_, err := writeDirectory(ctx, path, openerOf(raw), nothingBelow)
		if err != nil && !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("no class: %v", err)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
		if got := stateOf(t, sentinel); got != before || !slices.Equal(names(t, top), []string{"sentinel"}) {
			t.Errorf("something outside was touched: %+v, %q", got, names(t, top))
		}
	})
}

// stateOf is all of a file that changes when somebody touches it.
func stateOf(t testing.TB, path string) unix.Timespec {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ctim
}
