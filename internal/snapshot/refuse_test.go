package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// TestConvertRefuses: each hostile entry is refused by its name, and before it could do anything.
func TestConvertRefuses(t *testing.T) {
	for name, u := range unpackers {
		t.Run(name, func(t *testing.T) { testRefuses(t, u.convert) })
	}
}

func testRefuses(t *testing.T, convert func(testing.TB, []byte) (string, error)) {
	xattr := func(key, value string) tar.Header {
		h := regular("x", "")
		h.PAXRecords["SCHILY.xattr."+key] = value
		return h
	}
	chr := tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1 << 13}
	tests := map[string]struct {
		entries []tar.Header
		names   string
	}{
		"dot dot":             {[]tar.Header{regular("../../etc/passwd", "x")}, `"../../etc/passwd"`},
		"dot dot inside":      {[]tar.Header{regular("a/../../b", "x")}, `"a/../../b"`},
		"dot dot in absolute": {[]tar.Header{regular("/../b", "x")}, `"/../b"`},
		"hard link outside":   {[]tar.Header{link(tar.TypeLink, "a", "../../etc/shadow")}, `"../../etc/shadow"`},
		"hard link nowhere":   {[]tar.Header{link(tar.TypeLink, "a", "/etc/shadow")}, `"etc/shadow"`},
		"hard link to dir":    {[]tar.Header{dir("d", 0o755), link(tar.TypeLink, "a", "d")}, `"a"`},
		"hard link to itself": {[]tar.Header{regular("a", ""), link(tar.TypeLink, "a", "a")}, `"a"`},
		"through a symlink":   {[]tar.Header{link(tar.TypeSymlink, "l", "/etc"), regular("l/passwd", "x")}, `"l/passwd"`},
		"deep through one":    {[]tar.Header{link(tar.TypeSymlink, "l", "/"), regular("l/a/b/c", "x")}, `"l/a/b/c"`},
		"below a file":        {[]tar.Header{regular("f", "x"), regular("f/g", "x")}, `"f/g"`},
		"symlink to nothing":  {[]tar.Header{link(tar.TypeSymlink, "l", "")}, `"l"`},
		"root as file":        {[]tar.Header{link(tar.TypeSymlink, "./", "x")}, `""`},
		"long component":      {[]tar.Header{regular(strings.Repeat("n", 256), "x")}, `nnn`},
		"long name":           {[]tar.Header{regular(strings.Repeat("n/", 2100)+"n", "x")}, `n/n`},
		"long symlink":        {[]tar.Header{link(tar.TypeSymlink, "l", strings.Repeat("n", 4096))}, `"l"`},
		"device number":       {[]tar.Header{chr}, `"dev"`},
		"below a whiteout":    {[]tar.Header{regular(".wh.a/b", "x")}, `".wh.a/b"`},
		"whiteout of nothing": {[]tar.Header{regular("a/.wh.", "")}, `"a/.wh."`},
		"whiteout of dots":    {[]tar.Header{regular("a/.wh...", "")}, `"a/.wh..."`},
		"redirect":            {[]tar.Header{xattr("trusted.overlay.redirect", "/etc")}, `"x"`},
		"metacopy":            {[]tar.Header{xattr("trusted.overlay.metacopy", "")}, `"x"`},
		"inline data":         {[]tar.Header{xattr("system.data", "x")}, `"x"`},
		"attribute class":     {[]tar.Header{xattr("other.x", "x")}, `"x"`},
		"attribute name":      {[]tar.Header{xattr("user."+strings.Repeat("n", 251), "x")}, `"x"`},
		"attribute size":      {[]tar.Header{xattr("user.x", strings.Repeat("n", 5000))}, `"x"`},
		"broken acl":          {[]tar.Header{xattr("system.posix_acl_access", "x")}, `"x"`},
		"owner":               {[]tar.Header{{Typeflag: tar.TypeReg, Name: "f", Uid: -5, Format: tar.FormatGNU}}, `"f"`},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := convert(t, makeTar(t, test.entries...)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), test.names) {
				t.Errorf("got %v, want InvalidArgument that names %s", err, test.names)
			}
		})
	}
	t.Run("truncated", func(t *testing.T) {
		raw := makeTar(t, regular("a", strings.Repeat("x", 10000)))
		for _, n := range []int{100, 600, 5000} {
			if _, err := convert(t, raw[:n]); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%d bytes: got %v", n, err)
			}
		}
	})
	t.Run("huge", func(t *testing.T) {
		h := regular("huge", "")
		h.Size = 1 << 40
		var buf bytes.Buffer
		if err := tar.NewWriter(&buf).WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := convert(t, buf.Bytes()); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"huge"`) {
			t.Errorf("got %v", err)
		}
	})
}

// TestReplacedLink: a file that other names are linked to is replaced. The disk's converter cannot.
func TestReplacedLink(t *testing.T) {
	raw := makeTar(t, regular("a", "1"), link(tar.TypeLink, "b", "a"), regular("a", "2"),
		dir("d", 0o755), regular("d/x", "3"), link(tar.TypeLink, "e", "d/x"), regular("d", "4"))
	if _, err := disk(t, raw); !errdefs.IsNotImplemented(err) {
		t.Errorf("disk: %v", err)
	}
	root, err := directoryOf(t, raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a": "2", "b": "1", "d": "4", "e": "3"} {
		if got, err := os.ReadFile(filepath.Join(root, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestConvertHugeFile stores a file that needs a tree of extents, without writing its zeros.
func TestConvertHugeFile(t *testing.T) {
	const size = 5 << 30
	h := regular("dir/huge", "")
	h.Size = size
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	marks := map[int64]string{0: "first", 3 << 30: "middle", size - 4: "last"}
	_, err = convert(t.Context(), func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(head.Bytes()), io.LimitReader(&marked{marks: marks}, size), bytes.NewReader(make([]byte, 1024)))), nil
	}, f, nothingBelow)
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Sys().(*syscall.Stat_t).Blocks * 512; got > 8<<20 {
		t.Errorf("%d bytes are allocated for a file of zeros", got)
	}
	fsck(t, f.Name())
	in, err := os.Open(filepath.Join(mountDisk(t, f.Name()), "dir/huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	for at, text := range marks {
		got := make([]byte, min(int64(len(text)), size-at))
		if _, err := in.ReadAt(got, at); err != nil || string(got) != text[:len(got)] {
			t.Errorf("at %d: got %q, %v", at, got, err)
		}
	}
}

// marked is endless zeros but for a few marks.
type marked struct {
	at    int64
	marks map[int64]string
}

func (m *marked) Read(p []byte) (int, error) {
	clear(p)
	for at, text := range m.marks {
		for i := range len(text) {
			if pos := at + int64(i) - m.at; pos >= 0 && pos < int64(len(p)) {
				p[pos] = text[i]
			}
		}
	}
	m.at += int64(len(p))
	return len(p), nil
}

// TestConvertReportsSource: what the source says of its content is what the caller gets.
func TestConvertReportsSource(t *testing.T) {
	raw := makeTar(t, regular("a", "content"))
	for _, n := range []int{0, 300, len(raw)} {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		broken := fmt.Errorf("digest: %w", errdefs.ErrDataLoss)
		_, err = convert(t.Context(), func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(raw[:n]), &failing{broken})), nil
		}, f, nil)
		if !errors.Is(err, broken) {
			t.Errorf("after %d bytes: got %v", n, err)
		}
		f.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := convert(ctx, openerOf(raw), f, nothingBelow); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }
