package volumes_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/agent/volumes"
)

func TestPlace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: volumes in memory are mounts: they need root")
	}
	dir := t.TempDir()
	v := volumes.New(dir, nil)
	t.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "volumes/cache"), unix.MNT_DETACH) })
	place := func(path string) (string, *volumes.Placed) {
		t.Helper()
		mounts := []specs.Mount{{}, {Destination: "/cache"}}
		p, err := v.Place("c", mounts, []*agentv1.MemoryMount{{Mount: 1, Volume: "cache", SizeBytes: 1 << 20, Mode: 0o2770, Uid: 7, Gid: 8, Path: path}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return mounts[1].Source, p
	}
	whole, p := place("")
	var st unix.Stat_t
	if err := unix.Stat(whole, &st); err != nil || st.Mode&0o7777 != 0o2770 || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("mode %o, owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
	}
	if err := os.WriteFile(filepath.Join(whole, "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("2 MiB went into 1 MiB")
	}
	// What a hostile container leaves for the next one.
	for name, target := range map[string]string{"out": "../../..", "abs": dir, "self": "."} {
		if err := os.Symlink(target, filepath.Join(whole, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"new/deep", "out/x", "self/z"} {
		part, p := place(path)
		if err := os.WriteFile(filepath.Join(part, "file"), nil, 0o600); err != nil {
			t.Error(path, err)
		}
		if err := p.Close(); err != nil {
			t.Error(path, err)
		}
	}
	link := []*agentv1.MemoryMount{{Volume: "cache", Path: "abs/y"}}
	if _, err := v.Place("c", make([]specs.Mount, 1), link, nil); err == nil {
		t.Error("a directory was made through a link to nowhere")
	}
	for _, path := range []string{"volumes/cache/new/deep/file", "volumes/cache/x/file", "volumes/cache/z/file"} {
		if _, err := os.Stat(filepath.Join(dir, path)); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 { // volumes and placed
		t.Errorf("%v, %v", entries, err)
	}
}

func TestPlaceRefuses(t *testing.T) {
	v := volumes.New(t.TempDir(), nil)
	for _, m := range []*agentv1.MemoryMount{
		{Mount: 1, Volume: "a"}, {Volume: ""}, {Volume: "a/b"}, {Volume: ".."}, {Volume: strings.Repeat("a", 65)}, {Volume: "a", Path: "../x"}, {Volume: "a", Path: "/x"},
	} {
		if _, err := v.Place("c", make([]specs.Mount, 1), []*agentv1.MemoryMount{m}, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", m, err)
		}
	}
}

// TestParts: a part of a share is what is there under its name, and never what a hostile container has put a link to.
func TestParts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: parts of volumes are mounts: they need root")
	}
	dir, share := t.TempDir(), t.TempDir()
	v := volumes.New(dir, func(id string) string { return filepath.Join(share, id) })
	root := filepath.Join(share, "s1")
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "a/b"), 0o755), os.WriteFile(filepath.Join(root, "a/b/file"), []byte("x"), 0o644),
		os.Symlink("a", filepath.Join(root, "link")), os.Symlink(dir, filepath.Join(root, "a/out")), unix.Mkfifo(filepath.Join(root, "fifo"), 0o600)); err != nil {
		t.Fatal(err)
	}
	place := func(path string) ([]specs.Mount, *volumes.Placed, error) {
		mounts := []specs.Mount{{Destination: "/part"}}
		p, err := v.Place("c", mounts, nil, []*agentv1.SharePart{{Share: "s1", Path: path}})
		return mounts, p, err
	}
	for path, in := range map[string]string{"a/b": "/file", "a/b/file": ""} {
		mounts, p, err := place(path)
		if err != nil {
			t.Fatal(path, err)
		}
		if text, err := os.ReadFile(mounts[0].Source + in); err != nil || string(text) != "x" || mounts[0].Type != "bind" {
			t.Errorf("%s: %+v: %q, %v", path, mounts[0], text, err)
		}
		if err := p.Close(); err != nil {
			t.Error(path, err)
		}
	}
	for _, path := range []string{"", "link/b", "a/out", "..", "../s1", "/a", "none", "fifo"} {
		if mounts, _, err := place(path); err == nil {
			t.Errorf("%q: %+v", path, mounts[0])
		}
	}
}
