package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

var mtime = time.Unix(1700000000, 0)

// regular is a regular file for a test's tar.
func regular(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o644, ModTime: mtime, PAXRecords: map[string]string{bodyRecord: content}}
}

func dir(name string, mode int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: mtime}
}

func link(kind byte, name, target string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o644, ModTime: mtime}
}

func whiteout(name string) tar.Header { return regular(name, "") }

// bodyRecord smuggles a file's content into its header.
const bodyRecord = "TEST.body"

func makeTar(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		body := h.PAXRecords[bodyRecord]
		h.PAXRecords = maps.Clone(h.PAXRecords)
		delete(h.PAXRecords, bodyRecord)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func openerOf(raw []byte) opener {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
}

// unpackers write a tar in each form, and give the root directory of what has become of it.
var unpackers = map[string]struct {
	convert func(t testing.TB, raw []byte) (string, error)
	mount   func(t testing.TB, path string) string
}{
	"disk": {disk, func(t testing.TB, path string) string {
		fsck(t, path)
		return mountDisk(t, path)
	}},
	"directory": {directoryOf, func(_ testing.TB, path string) string { return path }},
}

// eachForm runs a test for each form of a layer.
func eachForm(t *testing.T, test func(t *testing.T, unpack func(testing.TB, []byte) string)) {
	needRoot(t)
	for name, u := range unpackers {
		t.Run(name, func(t *testing.T) {
			test(t, func(t testing.TB, raw []byte) string {
				t.Helper()
				path, err := u.convert(t, raw)
				if err != nil {
					t.Fatal(err)
				}
				return u.mount(t, path)
			})
		})
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: devices, owners and mounts need root")
	}
}

// nothingBelow is the inheriter of the lowest layer.
func nothingBelow([]string) (map[string]*entry, error) { return nil, nil }

// directoryOf extracts a tar.
func directoryOf(t testing.TB, raw []byte) (string, error) {
	t.Helper()
	needRoot(t)
	path := filepath.Join(t.TempDir(), "layer")
	_, err := writeDirectory(t.Context(), path, openerOf(raw), nothingBelow)
	return path, err
}

// disk converts a tar into an ext4 file.
func disk(t testing.TB, raw []byte) (string, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = convert(t.Context(), openerOf(raw), f, nothingBelow)
	return f.Name(), err
}

// fsck fails the test when the file system checker finds anything but the padding of the inode bitmap, which the
// converter leaves clear and the kernel does not look at.
func fsck(t testing.TB, path string) {
	t.Helper()
	if _, err := exec.LookPath("e2fsck"); err != nil {
		t.Skip("SKIPPED: e2fsck is not installed")
	}
	out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput()
	harmless := regexp.MustCompile(`(?m)^(e2fsck .*|Pass \d.*|Padding at end of inode bitmap is not set.*|.* WARNING: Filesystem still has errors .*|.* files \(.*|)\n?`)
	if rest := harmless.ReplaceAllString(string(out), ""); strings.TrimSpace(rest) != "" {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

// mountDisk mounts an ext4 file and returns where.
func mountDisk(t testing.TB, path string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting a disk needs root")
	}
	at := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop,ro", path, at).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: this machine cannot mount loop devices: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return at
}

// describe lists all files below root with all that matters about them.
func describe(t testing.TB, root string) map[string]string {
	t.Helper()
	out, inodes := map[string]string{}, map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		if name == "lost+found" || name == "." {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		text := fmt.Sprintf("%o %d:%d rdev=%x mtime=%d.%09d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch {
		case info.Mode().IsRegular():
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" size=%d content=%.40q", len(raw), raw)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " -> " + target
		}
		if !info.IsDir() {
			if first := inodes[st.Ino]; first != "" {
				text += " same as " + first
			} else {
				inodes[st.Ino] = name
			}
			text += fmt.Sprintf(" links=%d", st.Nlink)
		}
		out[name] = text + xattrsOf(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func xattrsOf(t testing.TB, path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	names := slices.DeleteFunc(strings.Split(string(buf[:n]), "\x00"), func(s string) bool { return s == "" })
	slices.Sort(names)
	var out string
	for _, name := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			t.Errorf("%s: %s is listed but cannot be read: %v", path, name, err)
			continue
		}
		out += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return out
}

// TestConvertMatchesApply compares each form with what containerd unpacks from the same tar.
func TestConvertMatchesApply(t *testing.T) { eachForm(t, testMatchesApply) }

func testMatchesApply(t *testing.T, unpack func(testing.TB, []byte) string) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	acl := "\x02\x00\x00\x00" + "\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x05\x00\xe8\x03\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" + "\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
	withXattrs := regular("bin/ping", "ping")
	withXattrs.Mode = 0o755
	withXattrs.PAXRecords["SCHILY.xattr.security.capability"] = capability
	withXattrs.PAXRecords["SCHILY.xattr.user.first"] = strings.Repeat("1", 300)
	withXattrs.PAXRecords["SCHILY.xattr.user.second.longer"] = strings.Repeat("2", 200)
	withACL := regular("etc/acl", "acl")
	withACL.PAXRecords["SCHILY.xattr.system.posix_acl_access"] = acl
	withACL.Mode = 0o755
	setuid := regular("bin/su", "su")
	setuid.Mode, setuid.Uid, setuid.Gid = 0o6755, 1000, 70000
	nanos := regular("etc/nanos", "n")
	nanos.ModTime = time.Unix(1700000000, 123456789)
	old := regular("etc/old", "before 1970")
	old.ModTime = time.Unix(-1000, 0)
	entries := []tar.Header{
		dir("./", 0o755), dir("bin/", 0o755), dir("etc/", 0o2775), dir("tmp/", 0o1777),
		withXattrs, withACL, setuid, nanos, old,
		regular("/absolute/name", "absolute names are below the root too"),
		regular("implied/parent/of/file", "x"),
		regular("etc/empty", ""), regular("etc/caf\xe9-\xff", "not UTF-8"), regular("etc/größe", "UTF-8"),
		regular("etc/"+strings.Repeat("n", 255), "longest name"),
		regular("bin/sh", "sh"), link(tar.TypeLink, "bin/bash", "bin/sh"), link(tar.TypeLink, "tmp/dash", "/bin/bash"),
		link(tar.TypeSymlink, "etc/short", "../bin/ping"), link(tar.TypeSymlink, "etc/abs", "/etc/passwd"),
		link(tar.TypeSymlink, "etc/59", strings.Repeat("a", 59)), link(tar.TypeSymlink, "etc/60", strings.Repeat("b", 60)),
		link(tar.TypeSymlink, "etc/long", strings.Repeat("c/", 2000)),
		link(tar.TypeLink, "etc/linked-symlink", "etc/short"),
		{Typeflag: tar.TypeChar, Name: "tmp/null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: mtime},
		{Typeflag: tar.TypeBlock, Name: "tmp/sda", Mode: 0o660, Devmajor: 259, Devminor: 300, ModTime: mtime},
		{Typeflag: tar.TypeFifo, Name: "tmp/fifo", Mode: 0o600, ModTime: mtime},
		regular("etc/replaced", "first"), regular("etc/replaced", "second, and longer"),
		dir("etc/becomes-file", 0o755), regular("etc/becomes-file/below", "gone"), regular("etc/becomes-file", "a file now"),
		regular("etc/becomes-dir", "gone"), dir("etc/becomes-dir", 0o700), regular("etc/becomes-dir/below", "there"),
		dir("etc/", 0o755), // attributes come again
	}
	for i := range 3000 {
		entries = append(entries, regular(fmt.Sprintf("many/%d", i), fmt.Sprint(i)))
	}
	raw := makeTar(t, entries...)
	want := t.TempDir()
	if _, err := archive.Apply(t.Context(), want, bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	compare(t, describe(t, want), describe(t, unpack(t, raw)))
}

func compare(t testing.TB, want, got map[string]string) {
	t.Helper()
	for name, w := range want {
		// Directories that no entry describes get the time of unpacking there, of their first entry here.
		if strings.HasPrefix(name, "implied") || name == "absolute" || name == "many" {
			w, got[name] = cutTime(w), cutTime(got[name])
		}
		if got[name] != w {
			t.Errorf("%q:\n want %s\n  got %s", name, w, got[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q: on the disk alone", name)
		}
	}
}

func cutTime(s string) string {
	before, after, _ := strings.Cut(s, " mtime=")
	_, after, _ = strings.Cut(after, " ")
	return before + " " + after
}

// TestConvertWhiteouts checks what overlayfs will see of removals.
func TestConvertWhiteouts(t *testing.T) { eachForm(t, testWhiteouts) }

func testWhiteouts(t *testing.T, unpack func(testing.TB, []byte) string) {
	opaque := dir("noted/", 0o755)
	opaque.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.trusted.overlay.origin": "x"}
	raw := makeTar(t,
		whiteout(".wh.gone"), whiteout("dir/.wh.gone"),
		dir("opaque/", 0o700), whiteout("opaque/.wh..wh..opq"), regular("opaque/new", "new"),
		whiteout("late/.wh..wh..opq"), dir("late/", 0o711),
		whiteout(".wh.replaced"), dir("replaced/", 0o750), regular("replaced/new", "new"),
		whiteout(".wh.implied"), regular("implied/new", "new"),
		dir("kept/", 0o755), regular("kept/file", "x"), whiteout(".wh.kept"),
		regular("stays", "stays"), whiteout(".wh.stays"), whiteout(".wh.comes"), regular("comes", "comes"),
		whiteout(".wh..wh.aufs"), regular(".wh..wh.plnk/1", "x"), opaque,
	)
	got := describe(t, unpack(t, raw))
	for _, name := range []string{"gone", "dir/gone"} {
		if !strings.HasPrefix(got[name], "20000 0:0 rdev=0 ") {
			t.Errorf("%s is no whiteout: %s", name, got[name])
		}
	}
	for _, name := range []string{"opaque", "late", "replaced", "implied", "kept", "noted"} {
		if !strings.HasSuffix(got[name], ` trusted.overlay.opaque="y"`) {
			t.Errorf("%s is not opaque: %s", name, got[name])
		}
	}
	for name, mode := range map[string]string{"opaque": "40700", "late": "40711", "replaced": "40750", "stays": "100644", "comes": "100644"} {
		if !strings.HasPrefix(got[name], mode+" ") {
			t.Errorf("%s: %s, want mode %s", name, got[name], mode)
		}
	}
	want := []string{"comes", "dir", "dir/gone", "gone", "implied", "implied/new", "kept", "kept/file", "late", "noted",
		"opaque", "opaque/new", "replaced", "replaced/new", "stays"}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		t.Errorf("got %q", names)
	}
}

// TestConvertManyXattrs: those that do not fit into the inode must be found by the kernel's search too.
func TestConvertManyXattrs(t *testing.T) { eachForm(t, testManyXattrs) }

func testManyXattrs(t *testing.T, unpack func(testing.TB, []byte) string) {
	rng := rand.New(rand.NewPCG(3, 4))
	var entries []tar.Header
	want := map[string]string{}
	for i := range 200 {
		h := regular(fmt.Sprint(i), "x")
		names := map[string]string{}
		for range 1 + rng.IntN(12) {
			name := []string{"user.", "trusted.", "security."}[rng.IntN(3)] + strings.Repeat(string(rune('a'+rng.IntN(26))), 1+rng.IntN(40))
			names[name] = strings.Repeat("v", rng.IntN(100))
		}
		for name, value := range names {
			if value == "" {
				value = "v" // an empty record would delete the attribute
			}
			h.PAXRecords["SCHILY.xattr."+name] = value
			names[name] = value
		}
		for _, name := range slices.Sorted(maps.Keys(names)) {
			want[h.Name] += fmt.Sprintf(" %s=%q", name, names[name])
		}
		entries = append(entries, h)
	}
	root := unpack(t, makeTar(t, entries...))
	for name, w := range want {
		if got := xattrsOf(t, filepath.Join(root, name)); got != w {
			t.Errorf("%s:\n want %s\n  got %s", name, w, got)
		}
	}
}

// TestConvertDirectories fills a tree at random, and expects all of it back.
func TestConvertDirectories(t *testing.T) { eachForm(t, testDirectories) }

func testDirectories(t *testing.T, unpack func(testing.TB, []byte) string) {
	rng := rand.New(rand.NewPCG(1, 2))
	var entries []tar.Header
	want := map[string]bool{}
	for i := range 2000 {
		name := fmt.Sprintf("d%d/e%d/%s-%d", rng.IntN(20), rng.IntN(20), strings.Repeat("x", rng.IntN(200)), i)
		entries = append(entries, regular(name, strings.Repeat("y", rng.IntN(10000))))
		want[name] = true
	}
	got := describe(t, unpack(t, makeTar(t, entries...)))
	for name := range want {
		if got[name] == "" {
			t.Errorf("%s is missing", name)
		}
	}
}

func FuzzConvert(f *testing.F) {
	f.Add(makeTar(f, dir("a/", 0o755), regular("a/b", "content"), link(tar.TypeLink, "c", "a/b"), link(tar.TypeSymlink, "d", "/etc"), whiteout("a/.wh.x")))
	f.Add(makeTar(f, regular("a", "1"), regular("a", "2"), whiteout(".wh.b"), dir("b", 0o700), whiteout("b/.wh..wh..opq")))
	x := regular("x", "")
	x.PAXRecords["SCHILY.xattr.user.x"] = "value"
	f.Add(makeTar(f, x, tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}))
	f.Add(makeTar(f, dir("a", 0o755), regular("a/b/c", "x"), regular("a", "y"), dir("a", 0o755)))
	path := filepath.Join(f.TempDir(), "disk")
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			t.Skip()
		}
		out, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		bounded := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }
		if _, err := convert(ctx, bounded, out, nothingBelow); err != nil {
			if known := errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err); !known {
				t.Fatalf("no class: %v", err)
			}
			return
		}
		fsck(t, path)
	})
}
