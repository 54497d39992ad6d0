package debian

import (
	"os"
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
