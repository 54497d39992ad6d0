package snapshot

import (
	"bytes"
	"io"
	"log"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/pistis-run/pistis/internal/image"
)

// pushed puts an image with one layer into a registry and returns its name.
func pushed(t testing.TB, host, repo string, raw []byte) string {
	t.Helper()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Author = "linux", runtime.GOARCH, repo
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return tag.Name()
}

// TestWithImages goes the way of an image from a registry to its forms and back to nothing, with the real image store.
func TestWithImages(t *testing.T) {
	needRoot(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	dir := t.TempDir()
	images, err := image.Open(t.Context(), image.Options{Root: filepath.Join(dir, "images"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	layers := openForm(asDisks).must(t, filepath.Join(dir, "layers"), images)
	directories := openForm(OpenDirectories).must(t, filepath.Join(dir, "directories"), images)
	images.SetForms(layers, directories)
	left := func(disks, dirs int) {
		t.Helper()
		if got := names(t, layers.root); len(got) != disks {
			t.Errorf("disks: %q, want %d", got, disks)
		}
		if got := names(t, directories.root); len(got) != dirs {
			t.Errorf("directories: %q, want %d", got, dirs)
		}
	}

	shared := makeTar(t, regular("file", "content"))
	one, two := pushed(t, host, "one:1", shared), pushed(t, host, "two:1", shared)
	img, err := images.Pull(t.Context(), image.PullRequest{Ref: one})
	if err != nil {
		t.Fatal(err)
	}
	left(1, 0)
	if _, err := images.Pull(t.Context(), image.PullRequest{Ref: two}); err != nil {
		t.Fatal(err)
	}
	left(1, 0)

	if err := images.Use(t.Context(), "container", img); err != nil {
		t.Fatal(err)
	}
	before, err := images.FSInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	paths, err := directories.Ensure(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(paths[0], "file")); err != nil || string(text) != "content" {
		t.Errorf("got %q, %v", text, err)
	}
	if after, err := images.FSInfo(t.Context()); err != nil || after.UsedInodes != before.UsedInodes+2 || after.UsedBytes <= before.UsedBytes {
		t.Errorf("usage with directories: %+v after %+v, %v", after, before, err)
	}
	for _, ref := range []string{one, two} {
		if err := images.Remove(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	left(1, 1)
	if paths, err := layers.Ensure(t.Context(), img); err != nil || len(paths) != 1 {
		t.Errorf("disks of an image that was removed while in use: %q, %v", paths, err)
	}
	if err := images.Unuse(t.Context(), "container"); err != nil {
		t.Fatal(err)
	}
	left(0, 0)

	hostile := pushed(t, host, "hostile:1", makeTar(t, regular("../../etc/cron.d/evil", "x")))
	if _, err := images.Pull(t.Context(), image.PullRequest{Ref: hostile}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "../../etc/cron.d/evil") {
		t.Errorf("hostile layer: %v", err)
	}
	if all, err := images.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("something is registered: %v, %v", all, err)
	}
	left(0, 0)
}
