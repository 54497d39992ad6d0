package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounts need root")
	}
}

// roots opens a directory, and fails the test where it leaves anything.
func roots(t testing.TB) *Roots {
	t.Helper()
	needRoot(t)
	return rootsIn(t, filepath.Join(t.TempDir(), "roots"))
}

func rootsIn(t testing.TB, dir string) *Roots {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := mounts(t, dir); len(left) > 0 {
			t.Errorf("mounts are left: %q", left)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("left: %v, %v", entries, err)
		}
	})
	return r
}

// mounts are the mount points below a directory.
func mounts(t testing.TB, dir string) (out []string) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if at := strings.Fields(line)[4]; strings.HasPrefix(at, dir+"/") {
			out = append(out, at)
		}
	}
	return out
}

func remove(t testing.TB, r *Roots, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := r.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
}

// layer makes a directory with files, each with its own name and the layer's as content. A name that ends with / is a
// directory, one that begins with - a whiteout.
func layer(t testing.TB, parent, name string, files ...string) string {
	t.Helper()
	dir := filepath.Join(parent, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		var err error
		gone, whiteout := strings.CutPrefix(f, "-")
		switch {
		case whiteout:
			err = unix.Mknod(filepath.Join(dir, gone), unix.S_IFCHR, 0)
		case strings.HasSuffix(f, "/"):
			err = os.Mkdir(filepath.Join(dir, f), 0o755)
		default:
			err = os.WriteFile(filepath.Join(dir, f), []byte(name), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func content(t testing.TB, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func stat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t)
}

func TestMount(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	low := layer(t, dir, "low", "a", "b", "c", "d/", "d/x")
	high := layer(t, dir, "high", "b", "-c")
	if err := errors.Join(os.Chown(low, 7, 8), unix.Chmod(low, 0o1775)); err != nil {
		t.Fatal(err)
	}
	at, err := r.Mount(t.Context(), "one", []string{low, high, low, high}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if at != r.Path("one") {
		t.Errorf("mounted at %s", at)
	}
	if got := names(t, at); !slices.Equal(got, []string{"a", "b", "d"}) {
		t.Errorf("holds %q", got)
	}
	if got := content(t, at+"/b"); got != "high" {
		t.Errorf("b is of %s", got)
	}
	if st := stat(t, at); st.Mode != unix.S_IFDIR|0o1775 || st.Uid != 7 || st.Gid != 8 {
		t.Errorf("/ is %o %d:%d", st.Mode, st.Uid, st.Gid)
	}
	if err := errors.Join(os.WriteFile(at+"/new", make([]byte, 100_000), 0o644), os.Remove(at+"/a"), os.WriteFile(at+"/b", []byte("mine"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if content(t, low+"/a") != "low" || content(t, high+"/b") != "high" {
		t.Error("a layer was written to")
	}
	if _, err := r.Mount(t.Context(), "one", []string{low}, Options{}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("twice: %v", err)
	}
	other, err := r.Mount(t.Context(), "two", []string{low}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := content(t, other+"/b"); got != "low" {
		t.Errorf("one root shows what another one wrote: %q", got)
	}
	remove(t, r, "one", "one", "two", "never-there")
	if got := names(t, low); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("the layer holds %q", got)
	}
}

// TestWhiteouts: what an upper layer hides is hidden, in roots as in images, of one layer too.
func TestWhiteouts(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	low, high := layer(t, dir, "low", "a", "d/", "d/x"), layer(t, dir, "high", "-a", "d/")
	if err := unix.Setxattr(high+"/d", "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	for id, mount := range map[string]func() (string, error){
		"root":  func() (string, error) { return r.Mount(t.Context(), "root", []string{low, high}, Options{}) },
		"image": func() (string, error) { return r.MountImage(t.Context(), "image", []string{low, high}, Options{}) },
		"one":   func() (string, error) { return r.MountImage(t.Context(), "one", []string{high}, Options{}) },
	} {
		at, err := mount()
		if err != nil {
			t.Fatal(err)
		}
		if got := names(t, at); !slices.Equal(got, []string{"d"}) {
			t.Errorf("%s holds %q", id, got)
		}
		if got := names(t, at+"/d"); len(got) != 0 {
			t.Errorf("%s: d holds %q", id, got)
		}
		remove(t, r, id)
	}
}

func TestMountImage(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	low, high := layer(t, dir, "low", "a"), layer(t, dir, "high", "b")
	for i, lowers := range [][]string{{}, {low}, {low, high}, {low, low}} {
		id := fmt.Sprint(i)
		at, err := r.MountImage(t.Context(), id, lowers, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at+"/x", nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("%d layers: written: %v", len(lowers), err)
		}
		want := []string{"a", "b"}[:min(len(lowers), i)]
		if i == 3 {
			want = want[:1]
		}
		if got := names(t, at); !slices.Equal(got, want) {
			t.Errorf("%d layers: got %q", len(lowers), got)
		}
		remove(t, r, id)
	}
}

// TestManyLayers stacks as many as the image service lets pass, and more, with long paths.
func TestManyLayers(t *testing.T) {
	r, dir := roots(t), filepath.Join(t.TempDir(), strings.Repeat("long, and:with\\signs", 10))
	var lowers []string
	for i := range 200 {
		lowers = append(lowers, layer(t, dir, fmt.Sprint("layer-", i), fmt.Sprint(i), "all"))
	}
	for _, n := range []int{120, 127, 200} {
		for _, mount := range []func(string) (string, error){
			func(id string) (string, error) { return r.Mount(t.Context(), id, lowers[:n], Options{}) },
			func(id string) (string, error) { return r.MountImage(t.Context(), id, lowers[:n], Options{}) },
		} {
			at, err := mount("many")
			if err != nil {
				t.Fatal(err)
			}
			if got := len(names(t, at)); got != n+1 {
				t.Errorf("%d files of %d layers", got, n)
			}
			if got, want := content(t, at+"/all"), fmt.Sprint("layer-", n-1); got != want {
				t.Errorf("the uppermost is %s", got)
			}
			remove(t, r, "many")
		}
	}
	for i := range 400 {
		lowers = append(lowers, layer(t, dir, fmt.Sprint("more-", i)))
	}
	if _, err := r.Mount(t.Context(), "many", lowers, Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("600 layers: %v", err)
	}
}

// TestMountLabel: this machine may have no SELinux, so only what the kernel is told is looked at.
func TestMountLabel(t *testing.T) {
	f, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := overlayOptions([]*os.File{f, f}, "system_u:object_r:container_file_t:s0:c1,c2", "upperdir=u")
	want := fmt.Sprintf(`%s,lowerdir=/proc/self/fd/%d:/proc/self/fd/%d,upperdir=u,context="system_u:object_r:container_file_t:s0:c1,c2"`, settings, f.Fd(), f.Fd())
	if err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}

func TestNoLayers(t *testing.T) {
	r := roots(t)
	at, err := r.Mount(t.Context(), "scratch", nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if st := stat(t, at); st.Mode != unix.S_IFDIR|0o755 || len(names(t, at)) != 0 {
		t.Errorf("mode %o, holds %q", st.Mode, names(t, at))
	}
	if err := os.WriteFile(at+"/x", nil, 0o600); err != nil {
		t.Error(err)
	}
	remove(t, r, "scratch")
}

func TestRefuses(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	low := layer(t, dir, "low")
	for _, id := range []string{"", ".", "..", "a/b", "../x", "a\x00", strings.Repeat("x", 256)} {
		if _, err := r.Mount(t.Context(), id, []string{low}, Options{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", id, err)
		}
		if err := r.Remove(t.Context(), id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("remove %q: %v", id, err)
		}
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(low, link); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]func(error) bool{
		filepath.Join(dir, "none"): errdefs.IsNotFound,
		link:                       errdefs.IsInternal,
	} {
		if _, err := r.Mount(t.Context(), "x", []string{low, name}, Options{}); !want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Mount(t.Context(), "x", []string{low}, Options{MountLabel: `a",upperdir="/`}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a label that is none: %v", err)
	}
	if _, err := r.Mount(t.Context(), "x", []string{low}, Options{UserNS: "/proc/self/ns/net"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no user namespace: %v", err)
	}
	if _, _, err := r.Usage(t.Context(), "x"); !errdefs.IsNotFound(err) {
		t.Errorf("usage of nothing: %v", err)
	}
}

// TestFullDisk: nothing is left of a mount for which there is no room.
func TestFullDisk(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("pistis-test", dir, "tmpfs", 0, "nr_inodes=6"); err != nil {
		t.Skipf("SKIPPED: cannot mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	low := layer(t, t.TempDir(), "low")
	r := rootsIn(t, filepath.Join(dir, "roots"))
	if _, err := r.Mount(t.Context(), "x", []string{low}, Options{}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("got %v", err)
	}
	if left := names(t, r.dir); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
}

func TestSubPath(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	low := layer(t, dir, "low", "file", "d/", "d/e/")
	for name, to := range map[string]string{"abs": "/d/e", "up": "../../../../d", "out": "/etc", "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(low, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := r.MountImage(t.Context(), "image", []string{low}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for sub, want := range map[string]string{"d": "d", "d/e/": "d/e", "/d": "d", "abs": "d/e", "up/e": "d/e", "../d": "d", ".": ""} {
		if got, err := SubPath(root, sub); err != nil || got != filepath.Join(root, want) {
			t.Errorf("%s: %s, %v", sub, got, err)
		}
	}
	for sub, want := range map[string]func(error) bool{
		"none": errdefs.IsNotFound, "out": errdefs.IsNotFound, "file": errdefs.IsInvalidArgument, "file/x": errdefs.IsInvalidArgument,
		"loop": errdefs.IsInvalidArgument, strings.Repeat("x", 300): errdefs.IsInvalidArgument, "": errdefs.IsNotFound,
	} {
		if got, err := SubPath(root, sub); !want(err) {
			t.Errorf("%q: %s, %v", sub, got, err)
		}
	}
	remove(t, r, "image")
}

func TestSweep(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	low := layer(t, dir, "low", "a")
	for _, id := range []string{"keep", "go", "image"} {
		if _, err := r.Mount(t.Context(), id, []string{low}, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	// What a daemon left that was killed while it made a root.
	if err := os.MkdirAll(filepath.Join(r.dir, "half", data), 0o700); err != nil {
		t.Fatal(err)
	}
	// The daemon comes again.
	again, err := Open(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Sweep(t.Context(), func(id string) bool { return id == "keep" }); err != nil {
		t.Fatal(err)
	}
	if got := names(t, r.dir); !slices.Equal(got, []string{"keep"}) {
		t.Errorf("left: %q", got)
	}
	if got := content(t, again.Path("keep")+"/a"); got != "low" {
		t.Errorf("the root that was to stay: %q", got)
	}
	remove(t, again, "keep")
}

func TestConcurrently(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	lowers := []string{layer(t, dir, "low", "a"), layer(t, dir, "high", "b")}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				id := fmt.Sprintf("%d-%d", i, j)
				at, err := r.Mount(t.Context(), id, lowers, Options{})
				if err == nil {
					err = os.WriteFile(at+"/a", []byte(id), 0o600)
				}
				if err == nil {
					err = r.Remove(t.Context(), id)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestRemoveBusy: a file that is held open, and a mount that a crash left beside the layers, stop no removal.
func TestRemoveBusy(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	low := layer(t, dir, "low", "a")
	at, err := r.Mount(t.Context(), "x", []string{low}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(at + "/a")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	left := filepath.Join(r.dir, "x", data, mapped)
	if err := errors.Join(os.Mkdir(left, 0o700), unix.Mount(dir, left, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	remove(t, r, "x")
	if got := content(t, low+"/a"); got != "low" {
		t.Errorf("the layer holds %q", got)
	}
}

// TestRemoveStaysInside: what is mounted below a root is not emptied.
func TestRemoveStaysInside(t *testing.T) {
	r, dir := roots(t), t.TempDir()
	precious := layer(t, dir, "precious", "file")
	if _, err := r.Mount(t.Context(), "x", nil, Options{}); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(r.dir, "x", data, upper, "m")
	if err := errors.Join(os.Mkdir(at, 0o700), unix.Mount(precious, at, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	if err := r.Remove(t.Context(), "x"); err == nil {
		t.Error("removed in spite of a mount")
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	remove(t, r, "x")
	if got := names(t, precious); !slices.Equal(got, []string{"file"}) {
		t.Errorf("holds %q", got)
	}
}
