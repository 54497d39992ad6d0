// Package signatures keeps the signatures that images were pulled with, so that a policy can be asked again when they are
// run, without a registry.
//
// A [Store] owns a directory with a file for each image, named by its manifest. What is in the files is not believed: a
// signature is as good as the key that made it. The image service adds to it before an image has a name, and removes what
// belongs to none. It must not know of registries or of policies.
package signatures

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/pistis-run/pistis/internal/signature"
	"github.com/pistis-run/pistis/internal/store"
)

const (
	// maxManifests is of how many manifests the signatures are kept that cover one image: its own, and indexes that it is in.
	maxManifests = 16
	// maxSize bounds the file of an image in bytes.
	maxSize = 16 << 20

	suffix = ".json"
)

// Set are signatures by the manifest or the index that was signed.
type Set map[digest.Digest][]signature.Signed

// Store keeps sets. It may be used from any goroutine.
type Store struct {
	Dir string

	adding sync.Mutex // what one adds to, another has not seen
}

func (s *Store) file(manifest digest.Digest) string {
	return filepath.Join(s.Dir, manifest.Algorithm().String()+"-"+manifest.Encoded()+suffix)
}

// Get returns the signatures of an image; there may be none.
func (s *Store) Get(manifest digest.Digest) (Set, error) {
	data, err := os.ReadFile(s.file(manifest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	var set Set
	if json.Unmarshal(data, &set) != nil {
		return nil, nil // a disk has lost it: the image is signed no more, until it is pulled again
	}
	return set, nil
}

// Add keeps signatures of an image, beside those that are kept of other indexes that it is in.
func (s *Store) Add(manifest digest.Digest, found Set) error {
	maps.DeleteFunc(found, func(_ digest.Digest, list []signature.Signed) bool { return len(list) == 0 })
	if len(found) == 0 {
		return nil
	}
	s.adding.Lock()
	defer s.adding.Unlock()
	kept, err := s.Get(manifest)
	if err != nil {
		return err
	}
	if kept == nil || len(kept)+len(found) > maxManifests {
		kept = Set{}
	}
	maps.Copy(kept, found)
	data, err := json.Marshal(kept)
	if err == nil && len(data) > maxSize {
		err = fmt.Errorf("%d bytes, at most %d are kept: %w", len(data), maxSize, errdefs.ErrResourceExhausted)
	}
	if err == nil {
		err = os.MkdirAll(s.Dir, 0o700)
	}
	if err == nil {
		err = store.WriteFile(s.file(manifest), data)
	}
	if err != nil {
		return fmt.Errorf("keep signatures: %w", err)
	}
	return nil
}

// Collect removes what belongs to no image.
func (s *Store) Collect(there func(manifest digest.Digest) bool) error {
	entries, err := os.ReadDir(s.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("collect signatures: %w", err)
	}
	for _, entry := range entries {
		algorithm, rest, _ := strings.Cut(entry.Name(), "-")
		manifest := digest.Digest(algorithm + ":" + strings.TrimSuffix(rest, suffix))
		if manifest.Validate() == nil && there(manifest) {
			continue
		}
		if err := os.Remove(filepath.Join(s.Dir, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("collect signatures: %w", err)
		}
	}
	return nil
}
