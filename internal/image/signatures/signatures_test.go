package signatures

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/pistis-run/pistis/internal/signature"
)

func set(name string) Set {
	return Set{digest.FromString(name): {{Payload: []byte(name), Signature: []byte("s")}}}
}

func TestStore(t *testing.T) {
	s := &Store{Dir: filepath.Join(t.TempDir(), "signatures")}
	image := digest.FromString("image")
	if got, err := s.Get(image); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	if err := errors.Join(s.Add(image, nil), s.Add(image, Set{image: nil}), s.Collect(nil)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(s.Dir); !os.IsNotExist(err) {
		t.Errorf("nothing was kept, and there is a directory: %v", err)
	}
	for i := range 2 * maxManifests {
		if err := s.Add(image, set(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Get(image)
	last := digest.FromString(fmt.Sprint(2*maxManifests - 1))
	if err != nil || len(got) > maxManifests || len(got[last]) != 1 || string(got[last][0].Payload) != string(set(fmt.Sprint(2*maxManifests - 1))[last][0].Payload) {
		t.Errorf("%d kept, %v", len(got), err)
	}
	if err := s.Add(image, Set{image: []signature.Signed{{Payload: make([]byte, maxSize)}}}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("too much: %v", err)
	}
	if err := os.WriteFile(s.file(image), []byte(`{"sha`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(image); err != nil || len(got) != 0 {
		t.Errorf("cut: %v, %v", got, err)
	}
}

// TestAddAtOnce: pulls by several names at once lead to one image.
func TestAddAtOnce(t *testing.T) {
	s, image := &Store{Dir: t.TempDir()}, digest.FromString("image")
	var pulls sync.WaitGroup
	for i := range maxManifests {
		pulls.Go(func() {
			if err := s.Add(image, set(fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	if got, err := s.Get(image); err != nil || len(got) != maxManifests {
		t.Errorf("%d kept of %d, %v", len(got), maxManifests, err)
	}
}

func TestCollect(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	here, gone := digest.FromString("here"), digest.FromString("gone")
	if err := errors.Join(s.Add(here, set("a")), s.Add(gone, set("b")), os.WriteFile(filepath.Join(s.Dir, "x.json.tmp-1"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.Collect(func(d digest.Digest) bool { return d == here }); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(s.Dir); err != nil || len(entries) != 1 || filepath.Join(s.Dir, entries[0].Name()) != s.file(here) {
		t.Errorf("left: %v, %v", entries, err)
	}
}
