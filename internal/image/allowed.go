package image

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/pistis-run/pistis/internal/signature"
)

// Allowed refuses an image that the policy does not allow now, however it came to this node: it may have been pulled under
// another policy, or imported. ref is what it is called by who wants it. Signatures are those that were kept when it was
// pulled, no registry is asked.
func (s *Service) Allowed(_ context.Context, ref string, img Image) error {
	policy, err := s.loadPolicy()
	if policy == nil {
		return err
	}
	kept, err := s.signatures.Get(img.Manifest.Digest)
	if err != nil {
		return fmt.Errorf("image %s: %w", img.ID, err)
	}
	signable := slices.Sorted(maps.Keys(kept))
	if len(signable) == 0 {
		signable = []digest.Digest{img.Manifest.Digest}
	}
	err = policy.Allows(namesFor(ref, img), signable, func(d digest.Digest) ([]signature.Signed, error) { return kept[d], nil })
	if err != nil {
		return disallowed("%s: %w; signatures are kept when an image is pulled and the policy asks for them: if it has them, pull it again", s.opts.SignaturePolicy, err)
	}
	return nil
}

// namesFor are those by one of which an image must be allowed: the one that it is asked for by, where it has that, else any.
func namesFor(ref string, img Image) []reference.Named {
	var names []reference.Named
	asked, err := parse(ref)
	for _, name := range slices.Concat(img.Tags, img.Digests) {
		named, bad := parse(name)
		if bad != nil {
			continue // an id
		}
		if err == nil && named.String() == asked.String() {
			return []reference.Named{named}
		}
		names = append(names, named)
	}
	return names
}
