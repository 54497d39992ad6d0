package hostmount_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hostmount"
)

// hostMount mounts something on the host for the length of a test.
func hostMount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(target, 0o755), unix.Mount(source, target, fstype, flags, data)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func TestFindMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it mounts: it needs root")
	}
	pod := filepath.Join(t.TempDir(), "pods/uid with blanks")
	memory, other := filepath.Join(pod, "volumes/kubernetes.io~empty-dir/cache"), filepath.Join(pod, "volumes/kubernetes.io~secret/s")
	hostMount(t, "tmpfs", memory, "tmpfs", 0, "size=3m,mode=2777,uid=5,gid=6")
	hostMount(t, "tmpfs", other, "tmpfs", 0, "size=3m")
	for _, dir := range []string{memory + "/a/b", other + "/a", filepath.Join(pod, "volumes/kubernetes.io~empty-dir/disk")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	part, secretPart := filepath.Join(pod, "volume-subpaths/cache/c/0"), filepath.Join(pod, "volume-subpaths/s/c/0")
	hostMount(t, memory+"/a/b", part, "", unix.MS_BIND, "")
	hostMount(t, other+"/a", secretPart, "", unix.MS_BIND, "")
	whole, err := hostmount.FindMemory(memory)
	if err != nil || whole == nil || whole.Size != 3<<20 || whole.Mode != 0o2777 || whole.UID != 5 || whole.GID != 6 || whole.Path != "" {
		t.Fatalf("%+v, %v", whole, err)
	}
	sub, err := hostmount.FindMemory(part)
	if err != nil || sub == nil || sub.Path != "a/b" || sub.Volume != whole.Volume || sub.Size != whole.Size || sub.Mode != whole.Mode {
		t.Fatalf("%+v, %v", sub, err)
	}
	for _, path := range []string{other, secretPart, filepath.Join(pod, "volumes/kubernetes.io~empty-dir/disk"), pod, memory + "/a", "/none", "/dev/shm"} {
		if found, err := hostmount.FindMemory(path); err != nil || found != nil {
			t.Errorf("%s: %+v, %v", path, found, err)
		}
	}
}

// TestFindPartReadOnlyElsewhere: hosts whose system is an image have all of their disk mounted read-only, and a directory of it
// again to be written.
func TestFindPartReadOnlyElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it mounts: it needs root")
	}
	dir := t.TempDir()
	disk, written := filepath.Join(dir, "sysroot"), filepath.Join(dir, "var")
	hostMount(t, "tmpfs", disk, "tmpfs", 0, "")
	if err := os.MkdirAll(filepath.Join(disk, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	hostMount(t, disk+"/var", written, "", unix.MS_BIND, "")
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	empty, part := filepath.Join(written, "pods/uid/volumes/kubernetes.io~empty-dir/data"), filepath.Join(written, "pods/uid/volume-subpaths/data/c/0")
	if err := os.MkdirAll(empty+"/a", 0o755); err != nil {
		t.Fatal(err)
	}
	hostMount(t, empty+"/a", part, "", unix.MS_BIND, "")
	if found, err := hostmount.FindPart(part); err != nil || found == nil || found.Volume != empty || found.Path != "a" {
		t.Errorf("%+v, %v, want %s", found, err, empty)
	}
}

func TestFindPart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: it mounts: it needs root")
	}
	pod := filepath.Join(t.TempDir(), "pods/uid")
	empty, other := filepath.Join(pod, "volumes/kubernetes.io~empty-dir/data"), filepath.Join(pod, "volumes/kubernetes.io~local-volume/data")
	for _, dir := range []string{empty + "/a/b", other + "/a"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := func(n string) string { return filepath.Join(pod, "volume-subpaths/data/c", n) }
	hostMount(t, empty+"/a/b", at("0"), "", unix.MS_BIND, "")
	hostMount(t, other+"/a", at("1"), "", unix.MS_BIND, "")
	hostMount(t, empty, at("2"), "", unix.MS_BIND, "")
	hostMount(t, empty+"/a", at("3"), "", unix.MS_BIND, "")
	if err := errors.Join(os.Rename(empty+"/a", empty+"/moved"), os.MkdirAll(empty+"/a/b", 0o755)); err != nil {
		t.Fatal(err)
	}
	// The kernel tells the new name of what was mounted.
	for path, want := range map[string]string{at("0"): "moved/b", at("3"): "moved", at("1"): "", at("2"): "", empty: "", empty + "/a": "", at("none"): ""} {
		found, err := hostmount.FindPart(path)
		if err != nil || want == "" && found != nil || want != "" && (found == nil || found.Path != want || found.Volume != empty) {
			t.Errorf("%s: %+v, %v, want %q", path, found, err, want)
		}
	}
}
