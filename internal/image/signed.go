package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pistis-run/pistis/internal/image/signatures"
	"github.com/pistis-run/pistis/internal/signature"
)

// ErrSignature is in the error of a pull that the signature policy does not allow.
var ErrSignature = errors.New("signature policy")

// Where cosign puts signatures: into layers of a manifest beside the image's, with the signature of a layer in an
// annotation.
const (
	signatureLayer      = "application/vnd.dev.cosign.simplesigning.v1+json"
	signatureAnnotation = "dev.cosignproject.cosign/signature"
)

// Bounds on what a registry has of signatures.
const (
	maxSignatures  = 50
	maxPayloadSize = 128 << 10 // bytes
)

// disallowed marks an image that the policy does not allow.
func disallowed(format string, args ...any) error {
	return fmt.Errorf("%w: %w: %w", ErrSignature, fmt.Errorf(format, args...), errdefs.ErrPermissionDenied)
}

// loadPolicy reads the policy anew each time, so that a change counts at once; nil without one.
func (s *Service) loadPolicy() (*signature.Policy, error) {
	if s.opts.SignaturePolicy == "" {
		return nil, nil
	}
	policy, err := signature.Load(s.opts.SignaturePolicy)
	if err != nil {
		return nil, disallowed("%w", err)
	}
	return policy, nil
}

// requirements of an image, before anything is known of it but its name. There are none without a policy.
func (s *Service) requirements(named reference.Named) ([]signature.Requirement, error) {
	policy, err := s.loadPolicy()
	if policy == nil {
		return nil, err
	}
	requirements := policy.For(named)
	if signature.Rejects(requirements) {
		return nil, disallowed("%s rejects images of this name", s.opts.SignaturePolicy)
	}
	return requirements, nil
}

// verify checks the signatures of an image, and returns those that it has looked at.
func (c *session) verify(ctx context.Context, named reference.Named, requirements []signature.Requirement, signable ...digest.Digest) (signatures.Set, error) {
	found := signatures.Set{}
	var failed error // of getting them, which says nothing of the image
	err := signature.Verify(named, requirements, signable, func(d digest.Digest) ([]signature.Signed, error) {
		if list, fetched := found[d]; fetched {
			return list, nil
		}
		list, err := c.signatures(ctx, named, d)
		if err != nil {
			failed = fmt.Errorf("signatures of %s: %w", d, err)
			return nil, failed
		}
		found[d] = list
		return list, nil
	})
	if err == nil || failed != nil {
		return found, failed
	}
	return nil, disallowed("%w", err)
}

// signatures gets those of a manifest; none is no error.
func (c *session) signatures(ctx context.Context, named reference.Named, d digest.Digest) ([]signature.Signed, error) {
	tag := fmt.Sprintf("%s:%s-%s.sig", named.Name(), d.Algorithm(), d.Encoded())
	name, desc, err := c.resolver.Resolve(ctx, tag)
	if errdefs.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	fetcher, err := c.resolver.Fetcher(ctx, name)
	if err != nil {
		return nil, err
	}
	data, err := fetchSmall(ctx, fetcher, desc, maxManifestSize)
	if err != nil {
		return nil, err
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, disallowed("the signatures' manifest is no JSON: %w", err)
	}
	var list []signature.Signed
	for _, l := range manifest.Layers {
		if l.MediaType != signatureLayer {
			continue
		}
		if len(list) == maxSignatures {
			return nil, disallowed("more than %d signatures", maxSignatures)
		}
		raw, err := base64.StdEncoding.DecodeString(l.Annotations[signatureAnnotation])
		if err != nil {
			return nil, disallowed("a signature is no base64: %w", err)
		}
		payload, err := fetchSmall(ctx, fetcher, l, maxPayloadSize)
		if err != nil {
			return nil, err
		}
		list = append(list, signature.Signed{Payload: payload, Signature: raw})
	}
	return list, nil
}

// fetchSmall gets a blob into memory and checks its digest.
func fetchSmall(ctx context.Context, fetcher remotes.Fetcher, desc ocispec.Descriptor, most int64) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, corrupt("signature: %w", err)
	}
	if desc.Size < 0 || desc.Size > most {
		return nil, disallowed("%s of a signature has %d bytes, at most %d are accepted", strings.TrimSpace(desc.MediaType), desc.Size, most)
	}
	body, err := fetcher.Fetch(ctx, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(&bodyReader{ctx, body}, desc.Size+1))
	if err != nil {
		return nil, err
	}
	if desc.Digest.Algorithm().FromBytes(data) != desc.Digest {
		return nil, corrupt("signature: %w: %s", errMismatch, desc.Digest)
	}
	return data, nil
}
