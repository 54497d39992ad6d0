package debian

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestParsePackage(t *testing.T) {
	p := parsePackage([]byte("Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nArchitecture: amd64\n" +
		"Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), a | b, c:any\n\nPackage: other\n"))
	if p.Name != "linux-image-cloud-amd64" || p.Version != "6.1.192-2" || p.Architecture != "amd64" {
		t.Errorf("got %+v", p)
	}
	if want := []string{"linux-image-6.1.0-56-cloud-amd64", "a", "c:any"}; !slices.Equal(p.Depends, want) {
		t.Errorf("depends %q, want %q", p.Depends, want)
	}
}

func TestOpenCopiesSources(t *testing.T) {
	needApt(t)
	etc, dir := t.TempDir(), t.TempDir()
	write(t, filepath.Join(etc, "sources.list"), "deb http://a.invalid/debian bookworm main\n")
	write(t, filepath.Join(etc, "sources.list.d/b.sources"), "Types: deb\nURIs: http://b.invalid/debian\nSuites: x\nComponents: main\n")
	write(t, filepath.Join(etc, "sources.list.d/c.list.disabled"), "no\n")
	for range 2 { // a second time on the same directory
		if _, err := Open(Options{Dir: dir, Sources: etc}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/sources.list.d/b.sources")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "etc/sources.list.d/c.list.disabled")); err == nil {
		t.Error("a file that apt does not read was copied")
	}
}

func TestNoSources(t *testing.T) {
	needApt(t)
	_, err := Open(Options{Dir: t.TempDir(), Sources: t.TempDir()})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "sources.list") {
		t.Errorf("got %v", err)
	}
}

func TestUnknownPackage(t *testing.T) {
	needApt(t)
	etc := t.TempDir()
	write(t, filepath.Join(etc, "sources.list"), "# none\n")
	a, err := Open(Options{Dir: t.TempDir(), Sources: etc})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Latest(t.Context(), "linux-image-cloud-amd64"); !errdefs.IsNotFound(err) {
		t.Errorf("Latest: %v", err)
	}
	if _, err := a.Fetch(t.Context(), "linux-image-cloud-amd64"); !errdefs.IsNotFound(err) {
		t.Errorf("Fetch: %v", err)
	}
}

func TestUnreachableSources(t *testing.T) {
	needApt(t)
	etc := t.TempDir()
	write(t, filepath.Join(etc, "sources.list"), "deb [trusted=yes] http://127.0.0.1:1/debian bookworm main\n")
	write(t, filepath.Join(etc, "apt.conf.d/retries"), "Acquire::Retries \"9\";\n") // ours wins
	a, err := Open(Options{Dir: t.TempDir(), Sources: etc})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Update(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v", err)
	}
}

// TestLocalSource works on a source that is a directory, with one package in it.
func TestLocalSource(t *testing.T) {
	needApt(t)
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("SKIPPED: needs dpkg-deb")
	}
	repo, etc := t.TempDir(), t.TempDir()
	deb := makePackage(t, repo)
	write(t, filepath.Join(etc, "sources.list"), "deb [trusted=yes] file:"+repo+" ./\ndeb [trusted=yes] http://127.0.0.1:1/debian bookworm main\n")
	a, err := Open(Options{Dir: t.TempDir(), Sources: etc})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Update(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := a.Latest(t.Context(), "pistis-test")
	if err != nil || p.Version != "1:2.0-3" {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, fetch := range []func(context.Context, ...string) ([]string, error){a.Fetch, a.Fetch, a.FetchAll} {
		files, err := fetch(t.Context(), "pistis-test")
		if err != nil || len(files) != 1 {
			t.Fatalf("%q, %v", files, err)
		}
		root := filepath.Join(t.TempDir(), "root")
		if err := Extract(t.Context(), files[0], root); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(root, "opt/file")); err != nil || string(data) != "content\n" {
			t.Errorf("%q, %v", data, err)
		}
	}
	if _, err := a.Latest(t.Context(), "nonsense"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "did not answer") {
		t.Errorf("got %v", err)
	}
	if err := Extract(t.Context(), deb+".not", t.TempDir()); err == nil {
		t.Error("a file that is not there was unpacked")
	}
}

// makePackage puts a package and its index into a directory.
func makePackage(t *testing.T, repo string) string {
	t.Helper()
	control := "Package: pistis-test\nVersion: 1:2.0-3\nArchitecture: all\nMaintainer: nobody <nobody@example.invalid>\nDescription: test\n"
	tree := t.TempDir()
	if err := os.Chmod(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(tree, "DEBIAN/control"), control)
	write(t, filepath.Join(tree, "opt/file"), "content\n")
	deb := filepath.Join(repo, "pistis-test.deb")
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--root-owner-group", "-b", tree, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(repo, "Packages"), fmt.Sprintf("%sFilename: ./pistis-test.deb\nSize: %d\nSHA256: %x\n", control, len(data), sha256.Sum256(data)))
	return deb
}

func needApt(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/usr/bin/apt-get"); err != nil {
		t.Skip("SKIPPED: needs apt-get")
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
