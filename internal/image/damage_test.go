package image

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// readForms reads every layer, as forms do.
type readForms struct{ s *Service }

func (f readForms) Begin(ctx context.Context, stack []Layer) (wait func() error) {
	return func() error {
		r, err := f.s.OpenLayer(ctx, stack[len(stack)-1])
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		r.Close()
		return err
	}
}

// all reads all of an image's layers.
func (f readForms) all(ctx context.Context, img Image) error {
	for i := range img.Layers {
		if err := f.Begin(ctx, img.Layers[:i+1])(); err != nil {
			return err
		}
	}
	return nil
}

func (readForms) Collect(_ context.Context, inUse func() (map[digest.Digest]struct{}, error)) error {
	_, err := inUse()
	return err
}

func (readForms) Usage(context.Context) (uint64, uint64, error) { return 0, 0, nil }

func (s *Service) blobPath(d digest.Digest) string {
	return filepath.Join(s.opts.Root, "content", "blobs", "sha256", d.Encoded())
}

// damages are what a disk can do to a file.
func damages() map[string]func(path string) error {
	return map[string]func(path string) error{
		"cut": func(path string) error { return os.Truncate(path, 100) },
		"overwritten": func(path string) error {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for i := range raw[len(raw)/2:] {
				raw[len(raw)/2+i] = 0
			}
			if err := os.Chmod(path, 0o600); err != nil {
				return err
			}
			return os.WriteFile(path, raw, 0o600)
		},
		"gone": os.Remove,
	}
}

// TestDamagedBlobs: a blob that is not what it was is noticed when it is read, and pulled again.
func TestDamagedBlobs(t *testing.T) {
	for how, damage := range damages() {
		for what, of := range map[string]func(img Image) digest.Digest{
			"manifest": func(img Image) digest.Digest { return img.Manifest.Digest },
			"config":   func(img Image) digest.Digest { return img.ID },
			"layer":    func(img Image) digest.Digest { return img.Layers[1].Blob.Digest },
		} {
			for _, restarted := range []bool{false, true} {
				name := what + " " + how
				if restarted {
					name += ", after a restart"
				}
				t.Run(name, func(t *testing.T) { testDamagedBlob(t, damage, of, what, restarted) })
			}
		}
	}
}

func testDamagedBlob(t *testing.T, damage func(string) error, of func(Image) digest.Digest, what string, restarted bool) {
	r, s := newRegistry(t), openService(t)
	whole := mustPull(t, s, r.push(t, "whole:1", makeImage(t, thisArch, "whole")))
	img := mustPull(t, s, r.push(t, "app:1", makeImage(t, thisArch, incompressible(1000), incompressible(2000))))
	if err := s.Use(t.Context(), "container", img); err != nil {
		t.Fatal(err)
	}
	if err := damage(s.blobPath(of(img))); err != nil {
		t.Fatal(err)
	}
	if restarted {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = reopenService(t, s.opts)
		defer s.Close()
	} else {
		s.parsed = map[digest.Digest]parsedManifest{}
	}
	s.SetForms(readForms{s})
	// Whoever reads it is told what to do; from then on the image is not there.
	for {
		found, err := s.Get(t.Context(), r.host+"/app:1")
		if err == nil {
			err = readForms{s}.all(t.Context(), found)
		}
		if errdefs.IsNotFound(err) {
			break
		}
		if err == nil || !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "pull") {
			t.Fatalf("the damage was not noticed: %v", err)
		}
	}
	// The layers of the container's image cannot be told any more, so that nothing is collected.
	if err := s.Remove(t.Context(), "nothing-of-that-name:1"); err != nil {
		t.Error(err)
	}
	again := mustPull(t, s, r.host+"/app:1")
	if err := (readForms{s}).all(t.Context(), again); err != nil {
		t.Errorf("pulled again: %v", err)
	}
	if _, err := s.Get(t.Context(), whole.ID.String()); err != nil {
		t.Errorf("another image has gone: %v", err)
	}
	if err := s.Unuse(t.Context(), "container"); err != nil {
		t.Error(err)
	}
}

// TestDamagedBlobOfAnotherImage: a pull that takes a damaged blob for granted downloads it once more.
func TestDamagedBlobOfAnotherImage(t *testing.T) {
	for how, damage := range damages() {
		t.Run(how, func(t *testing.T) {
			r, s := newRegistry(t), openService(t)
			s.SetForms(readForms{s})
			shared := incompressible(1000)
			one := mustPull(t, s, r.push(t, "one:1", makeImage(t, thisArch, shared)))
			if err := damage(s.blobPath(one.Layers[0].Blob.Digest)); err != nil {
				t.Fatal(err)
			}
			mustPull(t, s, r.push(t, "two:1", makeImage(t, thisArch, shared, "more")))
			if n := r.blobRequests(one.Layers[0].Blob.Digest); n != 2 {
				t.Errorf("the blob was asked for %d times", n)
			}
		})
	}
}

// TestDamagedDatabase: it is refused with what to do, and nothing of it is written to.
func TestDamagedDatabase(t *testing.T) {
	r := newRegistry(t)
	for name, damage := range map[string]func(raw []byte) []byte{
		"cut to a page":  func(raw []byte) []byte { return raw[:4096] },
		"cut in a page":  func(raw []byte) []byte { return raw[:5000] },
		"cut later":      func(raw []byte) []byte { return raw[:4*4096] },
		"overwritten":    func(raw []byte) []byte { clear(raw[2*4096:]); return raw },
		"no database":    func(raw []byte) []byte { clear(raw); return raw },
		"something else": func([]byte) []byte { return []byte(strings.Repeat("text\n", 4000)) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openService(t)
			mustPull(t, s, r.push(t, "app:1", makeImage(t, thisArch, "one")))
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(s.opts.Root, "metadata.db")
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(raw), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(t.Context(), s.opts); !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "wipe") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestSeveralDamagedImages: to lose one takes a look at the others, which may be damaged too.
func TestSeveralDamagedImages(t *testing.T) {
	for what, of := range map[string]func(img Image) digest.Digest{
		"manifests": func(img Image) digest.Digest { return img.Manifest.Digest },
		"configs":   func(img Image) digest.Digest { return img.ID },
	} {
		t.Run(what, func(t *testing.T) {
			r, s := newRegistry(t), openService(t)
			whole := mustPull(t, s, r.push(t, "whole:1", makeImage(t, thisArch, "whole")))
			names := []string{"one:1", "two:1", "three:1"}
			for _, name := range names {
				img := mustPull(t, s, r.push(t, name, makeImage(t, thisArch, name)))
				if err := damages()["overwritten"](s.blobPath(of(img))); err != nil {
					t.Fatal(err)
				}
			}
			s.parsed = map[digest.Digest]parsedManifest{}
			for _, name := range names {
				if _, err := s.Get(t.Context(), r.host+"/"+name); !errdefs.IsDataLoss(err) && !errdefs.IsNotFound(err) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if list, err := s.List(t.Context()); err != nil || len(list) != 1 || list[0].ID != whole.ID {
				t.Errorf("left are %v, %v", list, err)
			}
			for _, name := range names {
				mustPull(t, s, r.host+"/"+name)
			}
		})
	}
}
