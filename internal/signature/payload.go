package signature

import (
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// payloadType is what cosign calls its signatures of images.
const payloadType = "cosign container image signature"

// Signed is a signature as it lies in a registry.
type Signed struct{ Payload, Signature []byte }

// payload is what is signed.
type payload struct {
	Critical struct {
		Identity struct {
			Reference string `json:"docker-reference"`
		} `json:"identity"`
		Image struct {
			Digest digest.Digest `json:"docker-manifest-digest"`
		} `json:"image"`
		Type string `json:"type"`
	} `json:"critical"`
	Optional json.RawMessage `json:"optional"`
}

// Check returns nil where one of the signatures meets the requirement for an image with the manifest of this digest, and
// else why none does.
func (r Requirement) Check(image reference.Named, manifest digest.Digest, signatures []Signed) error {
	if len(signatures) == 0 {
		return errors.New("it is not signed")
	}
	var errs []error
	for _, s := range signatures {
		err := r.check(image, manifest, s)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (r Requirement) check(image reference.Named, manifest digest.Digest, s Signed) error {
	if !slices.ContainsFunc(r.keys, func(key crypto.PublicKey) bool { return verify(key, s.Payload, s.Signature) }) {
		return errors.New("a signature was not made with a key of the policy")
	}
	var p payload
	if err := strict(s.Payload, &p); err != nil {
		return fmt.Errorf("payload of a signature: %w", err)
	}
	if p.Critical.Type != payloadType {
		return fmt.Errorf("a signature is of type %q, not %q", p.Critical.Type, payloadType)
	}
	if p.Critical.Image.Digest != manifest {
		return fmt.Errorf("a signature is of %s, not of %s", p.Critical.Image.Digest, manifest)
	}
	return r.identity.check(image, p.Critical.Identity.Reference)
}
