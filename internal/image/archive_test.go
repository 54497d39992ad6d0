package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func dockerArchive(t testing.TB, repo, arch string, contents ...string) []byte {
	t.Helper()
	tag, err := name.NewTag(repo)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := tarball.Write(tag, makeImage(t, arch, contents...), &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestImportDocker(t *testing.T) {
	s, forms := openService(t), &recordingForms{}
	s.SetForms(forms)
	raw := dockerArchive(t, "busybox:1", thisArch, "one", "two")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(raw)
	_ = z.Close()
	for name, archive := range map[string][]byte{"plain": raw, "gzip": packed.Bytes()} {
		got, err := s.Import(t.Context(), bytes.NewReader(archive))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if len(got) != 1 || !slices.Equal(got[0].Tags, []string{"docker.io/library/busybox:1"}) || len(got[0].Layers) != 2 {
			t.Errorf("%s: %+v", name, got)
		}
		for _, l := range got[0].Layers {
			if _, err := readLayer(s, l); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if len(forms.prepared) != 4 || len(s.pending) != 0 {
		t.Errorf("forms %v, pending %v", forms.prepared, s.pending)
	}
	if err := s.Remove(t.Context(), "busybox:1"); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s)
}

// TestExport: what is exported comes back the same, with names and without.
func TestExport(t *testing.T) {
	r, from, to := newRegistry(t), openService(t), openService(t)
	tagged := mustPull(t, from, r.push(t, "app:1", makeImage(t, thisArch, "one")))
	mustPull(t, from, r.push(t, "app:2", makeImage(t, thisArch, "one")))
	second := makeImage(t, thisArch, "two")
	manifest, _, _ := digests(t, second)
	r.push(t, "other:1", second)
	nameless := mustPull(t, from, r.host+"/other@"+manifest.String())
	var buf bytes.Buffer
	if err := from.Export(t.Context(), &buf, r.host+"/app:2", string(nameless.ID)); err != nil {
		t.Fatal(err)
	}
	if owners, err := from.Owners(t.Context()); err != nil || len(owners) != 0 {
		t.Errorf("the export left %v, %v", owners, err)
	}
	raw := bytes.Clone(buf.Bytes())
	got, err := to.Import(t.Context(), &buf)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(got, func(i Image) bool { return i.ID == tagged.ID })
	if len(got) != 2 || i < 0 || !slices.Equal(got[i].Tags, []string{r.host + "/app:2"}) || got[i].Manifest.Digest != tagged.Manifest.Digest {
		t.Fatalf("got %+v", got)
	}
	if other, err := to.Get(t.Context(), string(nameless.ID)); err != nil || len(other.Tags)+len(other.Digests) != 0 {
		t.Errorf("nameless: %+v, %v", other, err)
	}
	// docker's form is in it as well.
	var manifests []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	files := map[string]bool{}
	for tr := tar.NewReader(bytes.NewReader(raw)); ; {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		files[hdr.Name] = true
		if hdr.Name == "manifest.json" {
			if err := json.NewDecoder(tr).Decode(&manifests); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(manifests) != 2 {
		t.Errorf("manifest.json: %+v", manifests)
	}
	for _, m := range manifests {
		for _, f := range append(m.Layers, m.Config) {
			if !files[f] {
				t.Errorf("manifest.json names %s, which is not there", f)
			}
		}
	}
	for _, refs := range [][]string{nil, {"never/was:1"}, {"NOT A NAME"}} {
		if err := from.Export(t.Context(), io.Discard, refs...); !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v", refs, err)
		}
	}
	if err := from.Export(t.Context(), failingWriter{}, string(tagged.ID)); err == nil || !known(err) {
		t.Errorf("a writer that fails: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestImportLayout(t *testing.T) {
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(makeImage(t, thisArch, "mine"), layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "registry.example/app:3"})); err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(makeImage(t, otherArch, "other")); err != nil {
		t.Fatal(err)
	}
	s := openService(t)
	got, err := s.Import(t.Context(), bytes.NewReader(tarOf(t, dir, nil)))
	if err != nil || len(got) != 1 || !slices.Equal(got[0].Tags, []string{"registry.example/app:3"}) {
		t.Errorf("got %+v, %v", got, err)
	}
}

// tarOf packs a directory. change may spoil a file, or drop it by returning nil.
func tarOf(t testing.TB, dir string, change func(name string, raw []byte) []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if change != nil {
			if raw = change(name, raw); raw == nil {
				return nil
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(raw))}); err != nil {
			return err
		}
		_, err = w.Write(raw)
		return err
	})
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestImportRefuses: what is no archive, or a damaged one, leaves nothing behind.
func TestImportRefuses(t *testing.T) {
	s := openService(t)
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	img := makeImage(t, thisArch, "mine")
	_, config, layers := digests(t, img)
	if err := path.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	foreign := dockerArchive(t, "busybox:1", otherArch, "one")
	without := func(part string) []byte {
		return tarOf(t, dir, func(name string, raw []byte) []byte {
			if strings.Contains(name, part) {
				return nil
			}
			return raw
		})
	}
	good := tarOf(t, dir, nil)
	spoilt := tarOf(t, dir, func(_ string, raw []byte) []byte {
		return bytes.ReplaceAll(raw, []byte(layers[0].Encoded()[:20]), []byte(strings.Repeat("0", 20)))
	})
	tests := map[string]struct {
		raw []byte
		is  func(error) bool
	}{
		"empty":            {nil, errdefs.IsInvalidArgument},
		"text":             {[]byte(strings.Repeat("no archive ", 200)), errdefs.IsInvalidArgument},
		"broken gzip":      {[]byte{0x1f, 0x8b, 1, 2, 3}, errdefs.IsInvalidArgument},
		"some tar":         {layerTar("a", "b"), errdefs.IsInvalidArgument},
		"truncated":        {good[:len(good)/2], errdefs.IsInvalidArgument},
		"no index":         {without("index.json"), errdefs.IsInvalidArgument},
		"missing layer":    {without(layers[0].Encoded()), errdefs.IsDataLoss},
		"missing config":   {without(config.Encoded()), errdefs.IsDataLoss},
		"wrong platform":   {foreign, errdefs.IsFailedPrecondition},
		"damaged manifest": {spoilt, errdefs.IsDataLoss},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := s.Import(t.Context(), bytes.NewReader(test.raw))
			if !test.is(err) || len(got) != 0 {
				t.Errorf("got %v, %v", got, err)
			}
			if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("something was registered: %+v, %v", all, err)
			}
			checkEmpty(t, s)
		})
	}
}

func FuzzImport(f *testing.F) {
	f.Add(dockerArchive(f, "busybox:1", thisArch, "one"))
	f.Add(layerTar("index.json", `{"manifests":[]}`))
	s := openService(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<20 {
			t.Skip()
		}
		if _, err := s.Import(t.Context(), bytes.NewReader(raw)); err != nil && !known(err) {
			t.Errorf("no class: %v", err)
		}
	})
}

func FuzzNormalize(f *testing.F) {
	for _, seed := range []string{"busybox", "a/b:1", "x@sha256:" + strings.Repeat("a", 64), "localhost:5000/x:y", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		full, err := Normalize(ref)
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("no class: %v", err)
			}
			return
		}
		if again, err := Normalize(full); err != nil || again != full {
			t.Errorf("%q becomes %q, and that %q, %v", ref, full, again, err)
		}
	})
}

// FuzzManifest decodes manifests, configs and indexes as a registry may send them.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":1}]}`))
	s := &Service{platform: openService(f).platform}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p parsedManifest
		if json.Unmarshal(raw, &p.manifest) == nil && checkManifest(p.manifest) == nil &&
			json.Unmarshal(raw, &p.config) == nil && s.checkConfig(p.config, len(p.manifest.Layers)) == nil {
			if p.size() < p.desc.Size || len(p.layers()) > maxLayers {
				t.Errorf("accepted: %s", raw)
			}
		}
	})
}
