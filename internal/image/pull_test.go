package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var thisArch, otherArch = runtime.GOARCH, map[bool]string{true: "s390x", false: "amd64"}[runtime.GOARCH != "s390x"]

func mustPull(t testing.TB, s *Service, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func readLayer(s *Service, l Layer) ([]byte, error) {
	r, err := s.OpenLayer(context.Background(), l)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestPull(t *testing.T) {
	r, s := newRegistry(t), openService(t, func(o *Options) { o.PinnedImages = nil })
	src := makeImage(t, thisArch, "one", "two", "three")
	manifest, config, _ := digests(t, src)
	ref := r.push(t, "some/app:1", src)
	var seen []Progress
	img, err := s.Pull(t.Context(), PullRequest{Ref: ref, Progress: func(p Progress) { seen = append(seen, p) }})
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != config || img.Manifest.Digest != manifest || len(img.Layers) != 3 || !slices.Equal(img.Tags, []string{ref}) ||
		!slices.Equal(img.Digests, []string{r.host + "/some/app@" + manifest.String()}) || img.Config.Config.Cmd[0] != "sh" {
		t.Errorf("got %+v", img)
	}
	last := seen[len(seen)-1]
	if last.Status != StatusDone || last.Offset != last.Total || last.Total != img.Size || len(last.Blobs) != 5 {
		t.Errorf("last progress: %+v, size %d", last, img.Size)
	}
	for i, l := range img.Layers {
		raw, err := readLayer(s, l)
		if want := layerTar(fmt.Sprintf("file%d", i), []string{"one", "two", "three"}[i]); err != nil || string(raw) != string(want) {
			t.Errorf("layer %d: %d bytes, %v", i, len(raw), err)
		}
	}
	for _, name := range []string{ref, string(img.ID), img.ID.Encoded(), img.ID.Encoded()[:12], img.Digests[0], ref + "@" + manifest.String()} {
		if got, err := s.Get(t.Context(), name); err != nil || got.ID != img.ID {
			t.Errorf("get %s: %v, %v", name, got.ID, err)
		}
	}
}

func TestPullByDigestAndRetag(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	first, second := makeImage(t, thisArch, "first"), makeImage(t, thisArch, "second")
	manifest, _, _ := digests(t, first)
	ref := r.push(t, "app:1", first)
	img := mustPull(t, s, r.host+"/app@"+manifest.String())
	if len(img.Tags) != 0 || len(img.Digests) != 1 {
		t.Errorf("by digest: %+v", img)
	}
	mustPull(t, s, ref)
	r.push(t, "app:1", second)
	if img := mustPull(t, s, ref); !slices.Equal(img.Tags, []string{ref}) {
		t.Errorf("second: %+v", img)
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 2 || len(all[1].Tags) != 0 || len(all[1].Digests) != 1 {
		t.Errorf("list: %+v, %v", all, err)
	}
}

func indexOf(t testing.TB, images map[string]v1.Image) v1.ImageIndex {
	t.Helper()
	var index v1.ImageIndex = empty.Index
	for arch, img := range images {
		add := mutate.IndexAddendum{Add: img}
		if arch != "" {
			add.Descriptor.Platform = &v1.Platform{OS: "linux", Architecture: arch}
		}
		index = mutate.AppendManifests(index, add)
	}
	return index
}

func TestPullIndex(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	mine := makeImage(t, thisArch, "mine")
	_, config, _ := digests(t, mine)
	ref := r.push(t, "multi:1", indexOf(t, map[string]v1.Image{otherArch: makeImage(t, otherArch, "other"), thisArch: mine}))
	img := mustPull(t, s, ref)
	if img.ID != config || !images.IsIndexType(img.Target.MediaType) || !images.IsManifestType(img.Manifest.MediaType) {
		t.Errorf("got %+v", img)
	}
	if _, err := s.db.GarbageCollect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := readLayer(s, img.Layers[0]); err != nil {
		t.Errorf("after garbage collection: %v", err)
	}
	for name, img := range map[string]any{"index": indexOf(t, map[string]v1.Image{otherArch: makeImage(t, otherArch, "other")}), "single": makeImage(t, otherArch, "x")} {
		var ref string
		switch i := img.(type) {
		case v1.ImageIndex:
			ref = r.push(t, "wrong-"+name, i)
		case v1.Image:
			ref = r.push(t, "wrong-"+name, i)
		}
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), otherArch) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ref := r.push(t, "no-platform", indexOf(t, map[string]v1.Image{"": mine})); mustPull(t, s, ref).ID != config {
		t.Error("an index without platforms must be tried")
	}
}

func TestPullMalformed(t *testing.T) {
	s := openService(t)
	for _, ref := range []string{"", "lib/UPPER", "a b", "app@sha256:123", ":tag", "http://x/y", strings.Repeat("x/", 200)} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	for in, want := range map[string]string{
		"busybox": "docker.io/library/busybox:latest", "a/b:1": "docker.io/a/b:1", "localhost:5000/x": "localhost:5000/x:latest",
		"x:1@sha256:" + strings.Repeat("a", 64): "docker.io/library/x@sha256:" + strings.Repeat("a", 64),
	} {
		if got, err := Normalize(in); got != want || err != nil {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
}

func TestPullNotThere(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/none:1"}); !errdefs.IsNotFound(err) {
		t.Errorf("no such image: %v", err)
	}
	host := r.host
	r.Close()
	if _, err := s.Pull(t.Context(), PullRequest{Ref: host + "/none:1"}); !errdefs.IsUnavailable(err) {
		t.Errorf("no registry: %v", err)
	}
}

// TestPullRefuses goes through images that are not what this node can run.
func TestPullRefuses(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	layer := layerTar("a", "b")
	good := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer))}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: thisArch}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{good.Digest}}}
	with := func(change func(*ocispec.Manifest)) ocispec.Manifest {
		m := ocispec.Manifest{Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, Layers: []ocispec.Descriptor{good}}
		m.SchemaVersion, m.MediaType = 2, ocispec.MediaTypeImageManifest
		change(&m)
		return m
	}
	tests := map[string]struct {
		manifest ocispec.Manifest
		config   any
		is       func(error) bool
		says     string
	}{
		"artifact":      {with(func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), config, errdefs.IsFailedPrecondition, "not a container image"},
		"foreign layer": {with(func(m *ocispec.Manifest) { m.Layers[0].MediaType = images.MediaTypeDockerSchema2LayerForeignGzip }), config, errdefs.IsFailedPrecondition, "foreign layer"},
		"encrypted":     {with(func(m *ocispec.Manifest) { m.Layers[0].MediaType += "+encrypted" }), config, errdefs.IsFailedPrecondition, "not supported"},
		"many layers":   {with(func(m *ocispec.Manifest) { m.Layers = slices.Repeat(m.Layers, 128) }), config, errdefs.IsFailedPrecondition, "at most 127"},
		"diff ids":      {with(func(m *ocispec.Manifest) {}), ocispec.Image{}, errdefs.IsDataLoss, "0 diff ids for 1 layers"},
		"config":        {with(func(m *ocispec.Manifest) {}), "no object", errdefs.IsDataLoss, "image config"},
		"config digest": {with(func(m *ocispec.Manifest) { m.Config.Digest, m.Config.Size = "sha256:short", 10 }), config, errdefs.IsDataLoss, "digest"},
		"huge config": {with(func(m *ocispec.Manifest) {
			m.Config.Digest, m.Config.Size = good.Digest, 1<<40
		}), config, errdefs.IsFailedPrecondition, "bytes, up to"},
		"negative layer": {with(func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }), config, errdefs.IsDataLoss, "size -1"},
		"layer size":     {with(func(m *ocispec.Manifest) { m.Layers[0].Size-- }), config, errdefs.IsDataLoss, "match"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ref := rawImage(t, r, strings.ReplaceAll(name, " ", "-"), test.manifest, types.OCIManifestSchema1, test.config, layer)
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
			if !test.is(err) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("schema 1", func(t *testing.T) {
		ref := rawImage(t, r, "schema1", with(func(m *ocispec.Manifest) {}), types.DockerManifestSchema1Signed, config, layer)
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "schema 1") {
			t.Errorf("got %v", err)
		}
	})
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("something was registered: %+v, %v", all, err)
	}
}

func TestPullCompressions(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	plain := layerTar("a", strings.Repeat("content ", 1000))
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(plain, nil)
	for mediaType, blob := range map[string][]byte{
		ocispec.MediaTypeImageLayer: plain, ocispec.MediaTypeImageLayerZstd: packed, images.MediaTypeDockerSchema2Layer: plain,
		images.MediaTypeDockerSchema2LayerZstd: packed, images.MediaTypeDockerSchema2LayerGzip: packed, // which is wrong, and happens
	} {
		m := ocispec.Manifest{Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig}, Layers: []ocispec.Descriptor{{MediaType: mediaType, Digest: digest.FromBytes(blob), Size: int64(len(blob))}}}
		m.SchemaVersion = 2
		config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: thisArch}, RootFS: ocispec.RootFS{DiffIDs: []digest.Digest{digest.FromBytes(plain)}}}
		config.Author = mediaType
		img := mustPull(t, s, rawImage(t, r, "packed", m, types.OCIManifestSchema1, config, blob))
		if raw, err := readLayer(s, img.Layers[0]); err != nil || string(raw) != string(plain) {
			t.Errorf("%s: %v", mediaType, err)
		}
	}
}

// TestOpenLayerVerifies: a diff id that the config made up is found out.
func TestOpenLayerVerifies(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	img := mustPull(t, s, r.push(t, "app:1", makeImage(t, thisArch, "one")))
	l := img.Layers[0]
	l.DiffID = digest.FromString("else")
	if _, err := readLayer(s, l); !errdefs.IsDataLoss(err) {
		t.Errorf("wrong diff id: %v", err)
	}
	path := filepath.Join(s.opts.Root, "content", "blobs", "sha256", l.Blob.Digest.Encoded())
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, raw, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := readLayer(s, img.Layers[0]); !errdefs.IsDataLoss(err) {
		t.Errorf("damaged blob: %v", err)
	}
}

// cutBlob is a large blob whose reader has gone as soon as it is read.
type cutBlob struct {
	content.ReaderAt
	cancel context.CancelFunc
	reads  int
}

func (c *cutBlob) Size() int64 { return 1 << 40 }

func (c *cutBlob) ReadAt(p []byte, _ int64) (int, error) {
	c.cancel()
	if c.reads++; c.reads > 1 {
		return 0, errors.New("it is read on")
	}
	return len(p), nil
}

// TestVerifyBlobEnds: a pull that was given up does not read a large blob to its end.
func TestVerifyBlobEnds(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	l := mustPull(t, s, r.push(t, "app:1", makeImage(t, thisArch, "one"))).Layers[0]
	l.DiffID = digest.FromString("else")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, err := s.OpenLayer(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	lr := reader.(*layerReader)
	lr.blob = &cutBlob{ReaderAt: lr.blob, cancel: cancel}
	if _, err := io.ReadAll(reader); !errors.Is(err, context.Canceled) || errdefs.IsDataLoss(err) {
		t.Errorf("got %v", err)
	}
	if _, err := s.content.Info(s.scope(t.Context()), l.Blob.Digest); err != nil {
		t.Errorf("the blob: %v", err) // it was not found damaged
	}
}

func TestPullCorruptLayer(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	src := makeImage(t, thisArch, "one", "two")
	_, _, layers := digests(t, src)
	ref := r.push(t, "app:1", src)
	r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, layers[1].String()) {
			n, _ := layerSize(src, 1)
			_, _ = w.Write(make([]byte, n))
			return true
		}
		return false
	})
	_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), layers[1].String()) {
		t.Errorf("got %v", err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("something was registered: %+v, %v", all, err)
	}
	checkEmpty(t, s)
	r.setIntercept(nil)
	mustPull(t, s, ref) // the bad bytes must not be in the way
}

func layerSize(img v1.Image, i int) (int64, error) {
	layers, err := img.Layers()
	if err != nil {
		return 0, err
	}
	return layers[i].Size()
}

// checkEmpty fails when any content is left.
func checkEmpty(t testing.TB, s *Service) {
	t.Helper()
	for _, dir := range []string{"blobs/sha256", "ingest"} {
		entries, err := os.ReadDir(filepath.Join(s.opts.Root, "content", dir))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("left behind: %s/%s", dir, e.Name())
		}
	}
}

// incompressible makes content that stays large.
func incompressible(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw)
	return string(raw)
}

// cut serves the first n bytes of what is left of a blob, then drops the connection.
func cut(w http.ResponseWriter, req *http.Request, blob []byte, n int) {
	from := 0
	if rng := req.Header.Get("Range"); rng != "" {
		from, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(rng, "bytes="), "-"))
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(blob)-1, len(blob)))
	}
	rest := blob[from:]
	w.Header().Set("Content-Length", strconv.Itoa(len(rest)))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	_, _ = w.Write(rest[:min(n, len(rest))])
	if n < len(rest) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// TestPullResumes: cut connections cost nothing twice, neither within a pull nor between two, nor across a restart.
func TestPullResumes(t *testing.T) {
	r := newRegistry(t)
	src := makeImage(t, thisArch, incompressible(1<<20))
	layers, _ := src.Layers()
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	_, _, ids := digests(t, src)
	ref := r.push(t, "big:1", src)
	var offsets []int64
	var broken atomic.Bool
	broken.Store(true)
	r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodGet || !strings.HasSuffix(req.URL.Path, ids[0].String()) {
			return false
		}
		from, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(req.Header.Get("Range"), "bytes="), "-"), 10, 64)
		r.mu.Lock()
		offsets = append(offsets, from)
		r.mu.Unlock()
		if n := len(blob) / 4; broken.Load() && int(from) >= 2*n {
			cut(w, req, blob, 0)
		} else {
			cut(w, req, blob, n)
		}
		return true
	})
	root := filepath.Join(t.TempDir(), "images")
	s := openService(t, func(o *Options) { o.Root = root })
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsUnavailable(err) {
		t.Fatalf("got %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s2 := reopenService(t, s.opts)
	defer s2.Close()
	broken.Store(false)
	before := len(offsets)
	img, err := s2.Pull(t.Context(), PullRequest{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	if offsets[0] != 0 || slices.Contains(offsets[1:], 0) || offsets[before] < int64(2*(len(blob)/4)) {
		t.Errorf("asked from %v, the second pull from number %d on", offsets, before)
	}
	if _, err := readLayer(s2, img.Layers[0]); err != nil {
		t.Error(err)
	}
	if left, err := s2.leases.List(s2.scope(t.Context())); err != nil || len(left) != 0 {
		t.Errorf("leases left: %v, %v", left, err)
	}
}

// TestPullDamagedIngest: what a crash has left of a blob may be wrong, and must not spoil all later pulls.
func TestPullDamagedIngest(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	src := makeImage(t, thisArch, incompressible(1<<18))
	_, _, ids := digests(t, src)
	ref := r.push(t, "big:1", src)
	ctx := s.scope(t.Context())
	size, _ := layerSize(src, 0)
	w, err := s.content.Writer(ctx, contentRef("fetch-"+ids[0].String()), contentDesc(ids[0], size))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, ref)
}
