package images

import (
	"archive/tar"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// pull reads an image from a registry, as a client does.
func pull(t *testing.T, r *Registry, ref string) v1.Image {
	t.Helper()
	parsed, err := name.ParseReference(r.Ref(ref), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed, remote.WithContext(t.Context()), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"}))
	if err != nil {
		t.Fatalf("%s: %v", ref, err)
	}
	return img
}

// serve serves an image that is built in the test, without packages or a cache.
func serve(t *testing.T, ref string, r recipe) *Registry {
	t.Helper()
	registry := Start(t)
	img, err := r.build()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(registry.Ref(ref), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return registry
}

func TestPushAndPull(t *testing.T) {
	r := serve(t, "x/layers:1", recipe{layers: append(upperLayers(), oddFiles())})
	img := pull(t, r, "x/layers:1")
	if err := validate.Image(img); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	rootfs := mutate.Extract(img)
	defer rootfs.Close()
	for tr := tar.NewReader(rootfs); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(h.Name, "/")] = string(content)
	}
	for name, want := range map[string]string{
		"layers/changed": "new\n", "layers/again": "second\n", "layers/opaque/new": "seen\n",
		"layers/kept/old": "kept\n", "layers/kept/new": "added\n", "layers/file-to-dir/inside": "a directory now\n",
	} {
		if got, ok := files[name]; !ok || got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"layers/deleted", "layers/tree/deep/down"} {
		if _, ok := files[name]; ok {
			t.Errorf("%s is there", name)
		}
	}
}

func TestRanges(t *testing.T) {
	l := newLayer()
	l.file("/data", 0o644, numbers(3, 100<<10))
	r := serve(t, "x/data:1", recipe{layers: []*layer{l}})
	layers, err := pull(t, r, "x/data:1").Layers()
	if err != nil {
		t.Fatal(err)
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	get := func(rng string) (int, []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Address+"/v2/x/data/blobs/"+digest.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if rng != "" {
			req.Header.Set("Range", rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, body
	}
	_, whole := get("")
	code, rest := get("bytes=1000-")
	if code != http.StatusPartialContent || string(rest) != string(whole[1000:]) {
		t.Errorf("range: %d, %d bytes of %d", code, len(rest), len(whole))
	}
}

func TestFaults(t *testing.T) {
	dir := t.TempDir()
	content := numbers(1, 10_000)
	if err := os.WriteFile(filepath.Join(dir, "blob"), content, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, f := range []fault{flipped, truncated, missing} {
		r := StartWith(t, Options{Wrap: func(http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				file, err := os.Open(filepath.Join(dir, "blob"))
				if err != nil {
					t.Error(err)
					return
				}
				defer file.Close()
				serveBlob(w, req, file, "sha256:0", f)
			})
		}})
		resp, err := http.Get("http://" + r.Address)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch f {
		case flipped:
			if err != nil || len(body) != len(content) || string(body) == string(content) {
				t.Errorf("flipped: %d bytes, %v", len(body), err)
			}
		case truncated:
			if err == nil || len(body) >= len(content) || resp.ContentLength != int64(len(content)) {
				t.Errorf("truncated: %d bytes of %d, %v", len(body), resp.ContentLength, err)
			}
		case missing:
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("missing: %d", resp.StatusCode)
			}
		}
	}
}

// TestGroups builds and serves every group, and checks that what should be sound is. It fetches packages.
func TestGroups(t *testing.T) {
	if os.Getenv("PISTIS_TEST_IMAGES") == "" {
		t.Skip("SKIPPED: fetches Debian packages; set PISTIS_TEST_IMAGES=1")
	}
	r := Start(t, Tour, Tests, Broken, Conformance)
	for _, ref := range r.Refs() {
		if strings.Contains(ref, "/corrupt:") || strings.Contains(ref, "foreign") {
			continue
		}
		if err := validate.Image(pull(t, r, ref), validate.Fast); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		if !strings.HasPrefix(r.Digest(ref), "sha256:") {
			t.Errorf("%s: digest %q", ref, r.Digest(ref))
		}
	}
}

func TestHostileLayersAreWellFormed(t *testing.T) {
	layers := hostileLayers()
	if len(layers) < 15 {
		t.Errorf("only %d: %q", len(layers), slices.Sorted(maps.Keys(layers)))
	}
	for tag, l := range layers {
		if _, err := l.tar(); err != nil {
			t.Errorf("%s: %v", tag, err)
		}
	}
}
