package signature

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// The ways in which what a signature names has to match what is pulled.
const (
	matchExact               = "matchExact"
	matchRepoDigestOrExact   = "matchRepoDigestOrExact" // where nothing is said
	matchRepository          = "matchRepository"
	matchExactReference      = "exactReference"
	matchExactRepository     = "exactRepository"
	matchRemapped            = "remapIdentity"
	adviceOfMissingTag       = "; cosign signs repositories unless told otherwise: use the signedIdentity matchRepository"
	signatureNames, demanded = "a signature is for %s, but %s is asked for", "a signature is for %s, but the policy wants %s"
)

// identity is which names a signature may have.
type identity struct {
	kind string
	// want is the fixed name of exactReference and exactRepository.
	want reference.Named
	// prefix of what is pulled is replaced by signedPrefix, for remapIdentity.
	prefix, signedPrefix string
}

func parseIdentity(data json.RawMessage) (identity, error) {
	if data == nil {
		return identity{kind: matchRepoDigestOrExact}, nil
	}
	var file struct {
		Type         string `json:"type"`
		Reference    string `json:"dockerReference"`
		Repository   string `json:"dockerRepository"`
		Prefix       string `json:"prefix"`
		SignedPrefix string `json:"signedPrefix"`
	}
	if err := strict(data, &file); err != nil {
		return identity{}, fmt.Errorf("signedIdentity: %w", err)
	}
	id := identity{kind: file.Type, prefix: file.Prefix, signedPrefix: file.SignedPrefix}
	remap := file.Prefix != "" || file.SignedPrefix != ""
	var err error
	switch {
	case id.kind == matchExactReference && file.Reference != "" && file.Repository == "" && !remap:
		if id.want, err = reference.ParseNormalizedNamed(file.Reference); err == nil && reference.IsNameOnly(id.want) {
			err = fmt.Errorf("%q has neither a tag nor a digest", file.Reference)
		}
	case id.kind == matchExactRepository && file.Repository != "" && file.Reference == "" && !remap:
		if id.want, err = reference.ParseNormalizedNamed(file.Repository); err == nil && !reference.IsNameOnly(id.want) {
			err = fmt.Errorf("%q is no repository", file.Repository)
		}
	case id.kind == matchRemapped && file.Prefix != "" && file.SignedPrefix != "" && file.Reference == "" && file.Repository == "":
	case (id.kind == matchExact || id.kind == matchRepoDigestOrExact || id.kind == matchRepository) && file.Reference == "" && file.Repository == "" && !remap:
	default:
		err = fmt.Errorf("type %q is not known, or has fields that are not its own", id.kind)
	}
	if err != nil {
		return identity{}, fmt.Errorf("signedIdentity: %w", err)
	}
	return id, nil
}

// check compares the image that is pulled with the name in a signature.
func (id identity) check(image reference.Named, name string) error {
	got, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return fmt.Errorf("a signature is for %q, which is no image: %w", name, err)
	}
	want, format := image, signatureNames
	switch id.kind {
	case matchRepository:
		want = reference.TrimNamed(image)
	case matchExactReference, matchExactRepository:
		want, format = id.want, demanded
	case matchRemapped:
		if want, err = id.remap(image); err != nil {
			return err
		}
	}
	_, byDigest := want.(reference.Digested)
	if id.kind == matchRepository || id.kind == matchExactRepository || byDigest && (id.kind == matchRepoDigestOrExact || id.kind == matchRemapped) {
		want, got = reference.TrimNamed(want), reference.TrimNamed(got)
	}
	if got.String() == want.String() {
		return nil
	}
	err = fmt.Errorf(format, name, want)
	if reference.IsNameOnly(got) && got.Name() == want.Name() {
		err = fmt.Errorf("%w%s", err, adviceOfMissingTag)
	}
	return err
}

// remap is the name that an image has where it was signed.
func (id identity) remap(image reference.Named) (reference.Named, error) {
	rest, ok := strings.CutPrefix(image.String(), id.prefix)
	if !ok || rest != "" && !strings.ContainsAny(rest[:1], "/:@") {
		return image, nil
	}
	mapped, err := reference.ParseNormalizedNamed(id.signedPrefix + rest)
	if err != nil {
		return nil, fmt.Errorf("remapIdentity of %s: %w", image, err)
	}
	return mapped, nil
}
