package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testRegistry is a registry on the loopback interface whose requests a test can count, hold up and spoil.
type testRegistry struct {
	*httptest.Server
	host string

	mu       sync.Mutex
	requests map[string]int // by method and path
	// intercept may answer a request itself, and then returns true.
	intercept func(w http.ResponseWriter, r *http.Request) bool
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	return startRegistry(t, (*httptest.Server).Start)
}

func startRegistry(t testing.TB, start func(*httptest.Server)) *testRegistry {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r := &testRegistry{requests: map[string]int{}}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests[req.Method+" "+req.URL.Path]++
		intercept := r.intercept
		r.mu.Unlock()
		if intercept != nil && intercept(w, req) {
			return
		}
		inner.ServeHTTP(w, req)
	}))
	r.Config.ErrorLog = log.New(io.Discard, "", 0)
	start(r.Server)
	t.Cleanup(r.Close)
	_, r.host, _ = strings.Cut(r.URL, "://")
	return r
}

func (r *testRegistry) setIntercept(f func(w http.ResponseWriter, req *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.intercept = f
}

// blobRequests counts how often a blob was asked for.
func (r *testRegistry) blobRequests(d digest.Digest) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for what, count := range r.requests {
		if strings.HasPrefix(what, "GET ") && strings.HasSuffix(what, "/blobs/"+d.String()) {
			n += count
		}
	}
	return n
}

// push uploads an image and returns its reference.
func (r *testRegistry) push(t testing.TB, repo string, img remote.Taggable) string {
	t.Helper()
	ref := r.host + "/" + repo
	tag, err := name.NewTag(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	switch i := img.(type) {
	case v1.Image:
		err = remote.Write(tag, i, remote.WithTransport(r.Client().Transport))
	case v1.ImageIndex:
		err = remote.WriteIndex(tag, i, remote.WithTransport(r.Client().Transport))
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// layerTar is a tar with one file.
func layerTar(name, content string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))})
	_, _ = io.WriteString(w, content)
	_ = w.Close()
	return buf.Bytes()
}

func layerOf(t testing.TB, raw []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// makeImage makes an image for a platform of this OS, with a layer for each content.
func makeImage(t testing.TB, arch string, contents ...string) v1.Image {
	t.Helper()
	img := empty.Image
	for i, c := range contents {
		var err error
		if img, err = mutate.AppendLayers(img, layerOf(t, layerTar(fmt.Sprintf("file%d", i), c))); err != nil {
			t.Fatal(err)
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", arch
	config.Config.Cmd = []string{"sh"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

func digests(t testing.TB, img v1.Image) (manifest, config digest.Digest, layers []digest.Digest) {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		layers = append(layers, digest.Digest(l.Digest.String()))
	}
	return digest.Digest(d.String()), digest.Digest(m.Config.Digest.String()), layers
}

// rawImage has any manifest and config; its layers are static blobs.
func rawImage(t testing.TB, r *testRegistry, repo string, manifest ocispec.Manifest, mediaType types.MediaType, config any, blobs ...[]byte) string {
	t.Helper()
	ref, err := name.NewTag(r.host+"/"+repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	rawConfig, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range append(blobs, rawConfig) {
		if err := remote.WriteLayer(ref.Context(), static.NewLayer(b, types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	if manifest.Config.Digest == "" {
		manifest.Config.Digest, manifest.Config.Size = digest.FromBytes(rawConfig), int64(len(rawConfig))
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Put(ref, rawManifest{raw, mediaType}); err != nil {
		t.Fatal(err)
	}
	return r.host + "/" + repo
}

type rawManifest struct {
	raw       []byte
	mediaType types.MediaType
}

func (r rawManifest) RawManifest() ([]byte, error)        { return r.raw, nil }
func (r rawManifest) MediaType() (types.MediaType, error) { return r.mediaType, nil }
func (r rawManifest) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(r.raw))
	return h, err
}
func (r rawManifest) Size() (int64, error) { return int64(len(r.raw)), nil }

// reopenService returns when the store has been swept; the caller closes it.
func reopenService(t testing.TB, opts Options) *Service {
	t.Helper()
	s, err := Open(context.WithoutCancel(t.Context()), opts)
	if err != nil {
		t.Fatal(err)
	}
	<-s.swept
	return s
}

func openService(t testing.TB, change ...func(*Options)) *Service {
	t.Helper()
	opts := Options{Root: filepath.Join(t.TempDir(), "images"), Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&opts)
	}
	s := reopenService(t, opts)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}
