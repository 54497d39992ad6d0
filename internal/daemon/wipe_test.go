package daemon

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestWipeRootSparesMounts: what somebody else has mounted is not removed, also when the root directory is a link.
func TestWipeRootSparesMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it mounts: it needs root")
	}
	real, link := t.TempDir(), filepath.Join(t.TempDir(), "root")
	mounted := filepath.Join(real, "disk")
	for _, dir := range []string{mounted, filepath.Join(real, "images"), filepath.Join(real, "guest")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	unmount := func() error { return unix.Unmount(mounted, unix.MNT_DETACH) }
	t.Cleanup(func() { _ = unmount() })
	if err := os.WriteFile(filepath.Join(mounted, "data"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := wipeRoot(paths{root: link}, quiet); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("with a mount: %v", err)
	}
	if _, err := os.Stat(filepath.Join(mounted, "data")); err != nil {
		t.Error(err)
	}
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if err := wipeRoot(paths{root: link}, quiet); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(real)
	if err != nil || len(left) != 1 || left[0].Name() != "guest" {
		t.Errorf("left are %v, %v", left, err)
	}
}
