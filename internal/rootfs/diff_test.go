package rootfs

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
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestDiff: what was written and deleted is in the archive as in that of a layer, and nothing else.
func TestDiff(t *testing.T) {
	r := roots(t)
	lower := layer(t, t.TempDir(), "l", "kept", "gone")
	if err := errors.Join(os.Mkdir(filepath.Join(lower, "full"), 0o755), os.WriteFile(filepath.Join(lower, "full/old"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	root, err := r.Mount(t.Context(), "c", []string{lower}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, r, "c")
	in := func(name string) string { return filepath.Join(root, name) }
	if err := errors.Join(
		os.Mkdir(in("new"), 0o750), os.WriteFile(in("new/file"), []byte("text"), 0o640), os.Link(in("new/file"), in("new/other")),
		os.Symlink("/etc/shadow", in("new/link")), unix.Mkfifo(in("new/fifo"), 0o600), os.Chown(in("new"), 7, 8),
		unix.Setxattr(in("new"), "trusted.x", []byte("v\x00"), 0),
		os.Remove(in("gone")), os.RemoveAll(in("full")), os.Mkdir(in("full"), 0o755), os.WriteFile(in("full/young"), nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := r.Diff(t.Context(), "c", &out); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for archive := tar.NewReader(&out); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = fmt.Sprintf("%c %o %d:%d %s%s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, text)
		if h.Name == "new/" && h.PAXRecords[attrRecord+"trusted.x"] != "v\x00" {
			t.Errorf("attributes %q", h.PAXRecords)
		}
		for attr := range h.PAXRecords {
			if strings.HasPrefix(attr, attrRecord+overlayPrefix) {
				t.Errorf("%s has %s", h.Name, attr)
			}
		}
	}
	first, second := "new/file", "new/other"
	if strings.HasPrefix(found[first], "1") {
		first, second = second, first
	}
	for name, want := range map[string]string{
		"new/": "5 750 7:8 ", first: "0 640 0:0 text", second: "1 640 0:0 " + first, "new/link": "2 777 0:0 /etc/shadow", "new/fifo": "6 600 0:0 ",
		".wh.gone": "0 0 0:0 ", "full/": "5 755 0:0 ", "full/.wh..wh..opq": "0 0 0:0 ", "full/young": "0 600 0:0 ",
	} {
		if found[name] != want {
			t.Errorf("%s is %q, want %q", name, found[name], want)
		}
		delete(found, name)
	}
	if len(found) > 0 {
		t.Errorf("also there: %q", found)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Diff(ctx, "c", io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	if err := r.Diff(t.Context(), "none", io.Discard); !errdefs.IsNotFound(err) {
		t.Errorf("of no root: %v", err)
	}
}

// TestWork: a directory for work goes with its root.
func TestWork(t *testing.T) {
	r := roots(t)
	if _, err := r.Mount(t.Context(), "c", nil, Options{}); err != nil {
		t.Fatal(err)
	}
	dir, err := r.Work("c")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info, err)
	}
	remove(t, r, "c")
	if _, err := r.Work("c"); !errdefs.IsNotFound(err) {
		t.Errorf("of no root: %v", err)
	}
}
