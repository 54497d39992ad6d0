package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

// ownMounts runs the test again in a mount namespace of its own, and reports whether this is that run.
func ownMounts(t *testing.T) bool {
	t.Helper()
	const mark = "PISTIS_TEST_OWN_MOUNTS"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, not tested: mounting needs root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), mark+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("%s", out)
	}
	return false
}

// loopDisk makes an ext4 disk of files, as a layer is.
func loopDisk(t *testing.T, files map[string]string) *agentv1.DiskAddress {
	t.Helper()
	dir := t.TempDir()
	tree, image := filepath.Join(dir, "tree"), filepath.Join(dir, "image")
	for name, text := range files {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o644), os.Truncate(image, 4<<20)); err != nil {
		t.Fatal(err)
	}
	for _, tool := range [][]string{{"mkfs.ext4", "-q", "-O", "^has_journal", "-d", tree, image}, {"losetup", "--find", "--show", "--read-only", image}} {
		out, err := exec.Command(tool[0], tool[1:]...).CombinedOutput()
		if err != nil {
			t.Skipf("SKIPPED, not tested: %s: %v: %s", tool[0], err, out)
		}
		if tool[0] == "losetup" {
			path := strings.TrimSpace(string(out))
			t.Cleanup(func() { _ = exec.Command("losetup", "--detach", path).Run() })
			return device(filepath.Base(path))
		}
	}
	return nil
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return strings.Join(all, " ")
}

func TestRoots(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	lower := loopDisk(t, map[string]string{"a": "lower", "b": "lower"})
	upper := loopDisk(t, map[string]string{"b": "upper", "dir/c": "upper"})
	s := New(t.TempDir())
	if _, err := s.Mount(t.Context(), "early", nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("before the scratch: %v", err)
	}
	if err := s.Setup(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	one, err := s.Mount(t.Context(), "one", []*agentv1.DiskAddress{lower, upper, lower})
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, one.Path); got != "a b dir" {
		t.Errorf("the root holds %q", got)
	}
	if text, err := os.ReadFile(filepath.Join(one.Path, "b")); err != nil || string(text) != "lower" {
		t.Errorf("b: %q, %v", text, err) // the uppermost is lower again
	}
	two, err := s.Mount(t.Context(), "two", []*agentv1.DiskAddress{lower})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(two.Path, "new"), make([]byte, 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	if bytes, inodes := s.Usage("two"); bytes < 100_000 || bytes > 200_000 || inodes != 2 {
		t.Errorf("usage: %d bytes, %d inodes", bytes, inodes)
	}
	if got := names(t, one.Path); got != "a b dir" {
		t.Errorf("one root sees the other's files: %q", got)
	}
	free, err := s.Unmount("one")
	if err != nil || len(free) != 1 || free[0] != upper {
		t.Errorf("unmount one: free %v, %v; lower is still used", free, err)
	}
	free, err = s.Unmount("two")
	if err != nil || len(free) != 1 || free[0] != lower {
		t.Errorf("unmount two: free %v, %v", free, err)
	}
	if free, err := s.Unmount("two"); err != nil || free != nil {
		t.Errorf("unmount again: %v, %v", free, err)
	}
	if got := names(t, filepath.Join(s.dir, "scratch")) + names(t, filepath.Join(s.dir, "layers")) + names(t, filepath.Join(s.dir, "roots")); got != "" {
		t.Errorf("left: %s", got)
	}
	if len(s.layers) != 0 {
		t.Errorf("left in the table: %v", s.layers)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestImageWithItsOwnLostFound(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	layer := loopDisk(t, map[string]string{"lost+found/kept": "x"})
	s := New(t.TempDir())
	if err := s.Setup(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(t.Context(), "c", []*agentv1.DiskAddress{layer})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root.Path, "lost+found/kept")); err != nil {
		t.Error(err)
	}
	_, err = s.Unmount("c")
	if err := errors.Join(err, s.Close()); err != nil {
		t.Error(err)
	}
}

// TestScratchStaysSparse: neither what the disk's file system does by itself nor what was removed takes space on the host.
func TestScratchStaysSparse(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	image := filepath.Join(t.TempDir(), "scratch")
	if err := errors.Join(os.WriteFile(image, nil, 0o644), os.Truncate(image, 1<<30)); err != nil {
		t.Fatal(err)
	}
	var path string
	for _, tool := range [][]string{{"mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", image}, {"losetup", "--find", "--show", image}} {
		out, err := exec.Command(tool[0], tool[1:]...).CombinedOutput()
		if err != nil {
			t.Skipf("SKIPPED, not tested: %s: %v: %s", tool[0], err, out)
		}
		path = strings.TrimSpace(string(out))
	}
	defer func() { _ = exec.Command("losetup", "--detach", path).Run() }()
	s := New(t.TempDir())
	if err := s.Setup(t.Context(), device(filepath.Base(path))); err != nil {
		t.Fatal(err)
	}
	options, err := os.ReadFile("/proc/fs/ext4/" + filepath.Base(path) + "/options")
	if err != nil {
		t.Skipf("SKIPPED, not tested: this kernel does not tell the options of ext4: %v", err)
	}
	for _, want := range []string{"discard", "noinit_itable"} {
		if !slices.Contains(strings.Fields(string(options)), want) {
			t.Errorf("not mounted with %s: %s", want, options)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestFailedMount leaves nothing, also of the layers that were mounted before the one that fails.
func TestFailedMount(t *testing.T) {
	if !ownMounts(t) {
		return
	}
	good := loopDisk(t, map[string]string{"a": "x"})
	bad := filepath.Join(t.TempDir(), "bad")
	if err := errors.Join(os.WriteFile(bad, []byte("no file system"), 0o644), os.Truncate(bad, 1<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--read-only", bad).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED, not tested: losetup: %v: %s", err, out)
	}
	path := strings.TrimSpace(string(out))
	defer func() { _ = exec.Command("losetup", "--detach", path).Run() }()
	s := New(t.TempDir())
	if err := s.Setup(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(t.Context(), "c", []*agentv1.DiskAddress{good, device(filepath.Base(path))}); err == nil {
		t.Fatal("a disk without a file system was mounted")
	}
	if _, err := os.Stat(filepath.Join(s.dir, "roots/c")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the root's directory: %v", err)
	}
	if len(s.layers) != 0 || len(s.containers) != 0 || names(t, filepath.Join(s.dir, "layers")) != "" {
		t.Errorf("left: %v %v", s.layers, s.containers)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
