package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func contentRef(ref string) content.WriterOpt { return content.WithRef(ref) }
func contentDesc(d digest.Digest, size int64) content.WriterOpt {
	return content.WithDescriptor(ocispec.Descriptor{Digest: d, Size: size})
}

// recordingForms notes what a Service wants of the forms of its layers.
type recordingForms struct {
	mu       sync.Mutex
	prepared []digest.Digest
	kept     map[digest.Digest]struct{}
	fail     error
}

func (f *recordingForms) Begin(_ context.Context, stack []Layer) (wait func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.prepared = append(f.prepared, stack[len(stack)-1].DiffID)
	return func() error { return f.fail }
}

func (f *recordingForms) Collect(_ context.Context, inUse func() (map[digest.Digest]struct{}, error)) error {
	used, err := inUse()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kept = used
	return err
}

func (f *recordingForms) Usage(context.Context) (uint64, uint64, error) { return 1 << 40, 7, nil }

func TestRemove(t *testing.T) {
	r, s, forms := newRegistry(t), openService(t), &recordingForms{}
	s.SetForms(forms)
	one, two := makeImage(t, thisArch, "shared", "one"), makeImage(t, thisArch, "shared", "two")
	first := mustPull(t, s, r.push(t, "one:1", one))
	mustPull(t, s, r.push(t, "one:2", one))
	second := mustPull(t, s, r.push(t, "two:1", two))
	if len(forms.prepared) != 6 {
		t.Errorf("prepared %v", forms.prepared)
	}
	if err := s.Remove(t.Context(), r.host+"/one:1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), r.host+"/one:2"); !errdefs.IsNotFound(err) {
		t.Errorf("the other tag is still there: %v", err)
	}
	if _, err := readLayer(s, first.Layers[1]); !errdefs.IsNotFound(err) {
		t.Errorf("its layer is still there: %v", err)
	}
	if _, err := readLayer(s, first.Layers[0]); err != nil {
		t.Errorf("the shared layer has gone: %v", err)
	}
	if len(forms.kept) != 2 {
		t.Errorf("kept forms %v", forms.kept)
	}
	for _, ref := range []string{r.host + "/one:1", string(first.ID), "never/was:here", first.ID.Encoded()[:10]} {
		if err := s.Remove(t.Context(), ref); err != nil {
			t.Errorf("%s again: %v", ref, err)
		}
	}
	if err := s.Remove(t.Context(), "NOT A NAME"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if err := s.Remove(t.Context(), string(second.ID)); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s)
}

func TestUse(t *testing.T) {
	r, forms := newRegistry(t), &recordingForms{}
	s := openService(t)
	s.SetForms(forms)
	ref := r.push(t, "app:1", makeImage(t, thisArch, "one"))
	img := mustPull(t, s, ref)
	for _, owner := range []string{"c1", "c1", "c2"} {
		if err := s.Use(t.Context(), owner, img); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	still := func(when string) {
		t.Helper()
		if _, err := readLayer(s, img.Layers[0]); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if _, ok := forms.kept[img.Layers[0].DiffID]; !ok {
			t.Errorf("%s: the form has gone", when)
		}
	}
	still("removed while in use")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s2 := reopenService(t, s.opts)
	defer s2.Close()
	s2.SetForms(forms)
	s.content = s2.content
	still("after a restart")
	if owners, err := s2.Owners(t.Context()); err != nil || !slices.Equal(owners, []string{"c1", "c2"}) {
		t.Errorf("owners: %v, %v", owners, err)
	}
	if err := s2.Unuse(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	still("with one user left")
	if err := errors.Join(s2.Unuse(t.Context(), "c2"), s2.Unuse(t.Context(), "c2"), s2.Unuse(t.Context(), "never")); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s2)
	if len(forms.kept) != 0 {
		t.Errorf("forms kept: %v", forms.kept)
	}
	if err := s2.Use(t.Context(), "c3", img); !errdefs.IsNotFound(err) {
		t.Errorf("an image that has gone: %v", err)
	}
	if owners, err := s2.Owners(t.Context()); err != nil || len(owners) != 0 {
		t.Errorf("owners: %v, %v", owners, err)
	}
}

func TestFormsFail(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	s.SetForms(&recordingForms{fail: errdefs.ErrInvalidArgument})
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.push(t, "app:1", makeImage(t, thisArch, "one"))}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	checkEmpty(t, s)
	if len(s.pending) != 0 {
		t.Errorf("pending: %v", s.pending)
	}
}

func recordsOf(ids ...string) []images.Image {
	var out []images.Image
	for _, id := range ids {
		out = append(out, images.Image{Name: id, Labels: map[string]string{labelConfig: id}})
	}
	return out
}

func TestGetAmbiguous(t *testing.T) {
	all := []string{"sha256:" + strings.Repeat("a", 64), "sha256:" + strings.Repeat("a", 63) + "b"}
	records := recordsOf(all...)
	if _, err := identify(records, strings.Repeat("a", 12)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if id, err := identify(records, strings.Repeat("a", 63)+"b"); err != nil || id != all[1] {
		t.Errorf("got %s, %v", id, err)
	}
	for _, ref := range []string{"aaaaa", "sha256:aaaaa", "sha256:" + strings.Repeat("c", 64), strings.Repeat("c", 64), "cafe01"} {
		if _, err := identify(records, ref); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", ref, err)
		}
	}
}

func TestPinned(t *testing.T) {
	r := newRegistry(t)
	s := openService(t, func(o *Options) { o.PinnedImages = []string{r.host + "/pause:1"} })
	if img := mustPull(t, s, r.push(t, "pause:1", makeImage(t, thisArch, "pause"))); !img.Pinned {
		t.Error("not pinned")
	}
	if img := mustPull(t, s, r.push(t, "other:1", makeImage(t, thisArch, "other"))); img.Pinned {
		t.Error("pinned")
	}
	if _, err := Open(t.Context(), Options{Root: t.TempDir(), PinnedImages: []string{"NOT A NAME"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
}

func TestFSInfo(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	before, err := s.FSInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustPull(t, s, r.push(t, "app:1", makeImage(t, thisArch, incompressible(1<<20))))
	after, err := s.FSInfo(t.Context())
	if err != nil || after.UsedBytes < before.UsedBytes+1<<20 || after.UsedInodes <= before.UsedInodes || after.Mountpoint != s.opts.Root {
		t.Errorf("before %+v, after %+v, %v", before, after, err)
	}
	s.SetForms(&recordingForms{})
	if with, err := s.FSInfo(t.Context()); err != nil || with.UsedBytes < 1<<40 || with.UsedInodes != after.UsedInodes+7 {
		t.Errorf("with forms %+v, %v", with, err)
	}
}

func TestOneProcess(t *testing.T) {
	s := openService(t)
	if _, err := Open(t.Context(), s.opts); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

// TestRecover: what a crash leaves in every possible place is put into order at the next start.
func TestRecover(t *testing.T) {
	r, s := newRegistry(t), openService(t)
	kept := mustPull(t, s, r.push(t, "kept:1", makeImage(t, thisArch, "kept")))
	lost := mustPull(t, s, r.push(t, "lost:1", makeImage(t, thisArch, "lost")))
	ctx := s.scope(t.Context())
	// An import that was killed.
	leased, _, err := s.lease(ctx, leaseTemp, "import")
	if err != nil {
		t.Fatal(err)
	}
	blob := []byte("imported")
	if err := content.WriteBlob(leased, s.content, "x", strings.NewReader(string(blob)), ocispec.Descriptor{Digest: digest.FromBytes(blob), Size: int64(len(blob))}); err != nil {
		t.Fatal(err)
	}
	w, err := s.content.Writer(leased, contentRef("half"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	// A blob whose transaction was lost, an ingest that nobody knows, and a blob that has gone.
	dir := filepath.Join(s.opts.Root, "content")
	orphan := filepath.Join(dir, "blobs", "sha256", digest.FromString("orphan").Encoded())
	ref := "pistis/9/unknown"
	ingest := filepath.Join(dir, "ingest", digest.FromString(ref).Encoded())
	err = errors.Join(os.WriteFile(orphan, []byte("orphan"), 0o600), os.MkdirAll(ingest, 0o700), os.WriteFile(filepath.Join(ingest, "ref"), []byte(ref), 0o600),
		os.Remove(filepath.Join(dir, "blobs", "sha256", lost.Layers[0].Blob.Digest.Encoded())))
	if err != nil {
		t.Fatal(err)
	}
	s2, err := Open(t.Context(), s.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s2.Close()
	if _, err := s2.Get(t.Context(), r.host+"/lost:1"); !errdefs.IsNotFound(err) {
		t.Errorf("an image without its layer is there: %v", err)
	}
	if _, err := readLayer(s2, kept.Layers[0]); err != nil {
		t.Errorf("kept: %v", err)
	}
	<-s2.swept
	if ingests, err := os.ReadDir(filepath.Join(dir, "ingest")); err != nil || len(ingests) != 0 {
		t.Errorf("ingests: %v, %v", ingests, err)
	}
	blobs, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
	if err != nil || len(blobs) != 5 { // two manifests and configs, one layer
		t.Errorf("blobs: %v, %v", blobs, err)
	}
	mustPull(t, s2, r.host+"/lost:1")
	if _, err := readLayer(s2, lost.Layers[0]); err != nil {
		t.Errorf("lost: %v", err)
	}
}

// TestFullDisk runs on a file system that is too small for the image.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounting a small file system needs root")
	}
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4m", "pistis-test", root).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: cannot mount a tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	r, s := newRegistry(t), openService(t, func(o *Options) { o.Root = filepath.Join(root, "images") })
	small := mustPull(t, s, r.push(t, "small:1", makeImage(t, thisArch, "small")))
	ref := r.push(t, "big:1", makeImage(t, thisArch, incompressible(1<<20), incompressible(8<<20)))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "full") {
		t.Fatalf("got %v", err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("list: %+v, %v", all, err)
	}
	if _, err := readLayer(s, small.Layers[0]); err != nil {
		t.Errorf("the image that was there: %v", err)
	}
	if err := s.Remove(t.Context(), string(small.ID)); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s)
	mustPull(t, s, r.push(t, "medium:1", makeImage(t, thisArch, incompressible(2<<20))))
}
