package signature

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// maxPolicySize and maxKeySize bound files, in bytes.
const (
	maxPolicySize = 4 << 20
	maxKeySize    = 64 << 10
)

// transport is the part of a policy that is about registries.
const transport = "docker"

// Policy says what is required of images.
type Policy struct {
	byDefault []Requirement
	// scopes are registries, repositories and images; the empty one is for all registries.
	scopes map[string][]Requirement
}

// Load reads a policy, with the keys that it names. Errors are FailedPrecondition.
func Load(path string) (*Policy, error) {
	data, err := readFile(path, maxPolicySize)
	if err != nil {
		return nil, fmt.Errorf("signature policy: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	p, err := parse(data, func(path string) ([]byte, error) { return readFile(path, maxKeySize) })
	if err != nil {
		return nil, fmt.Errorf("signature policy %s: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	}
	return p, nil
}

func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("%s: more than %d bytes", path, most)
	}
	return data, err
}

// parse reads a policy; key reads a file of a key.
func parse(data []byte, key func(path string) ([]byte, error)) (*Policy, error) {
	var file struct {
		Default    []json.RawMessage                       `json:"default"`
		Transports map[string]map[string][]json.RawMessage `json:"transports"`
	}
	if err := strict(data, &file); err != nil {
		return nil, err
	}
	var err error
	p := &Policy{scopes: map[string][]Requirement{}}
	if p.byDefault, err = requirements(file.Default, key); err != nil {
		return nil, fmt.Errorf("default: %w", err)
	}
	for scope, list := range file.Transports[transport] {
		if p.scopes[scope], err = requirements(list, key); err != nil {
			return nil, fmt.Errorf("transports.docker[%q]: %w", scope, err)
		}
	}
	return p, nil
}

func requirements(raw []json.RawMessage, key func(string) ([]byte, error)) ([]Requirement, error) {
	if len(raw) == 0 {
		return nil, errors.New("there is no requirement; to accept all images say insecureAcceptAnything")
	}
	var list []Requirement
	for _, data := range raw {
		r, err := parseRequirement(data, key)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// For returns what is required of an image: what the policy says of the narrowest scope that it is in.
func (p *Policy) For(image reference.Named) []Requirement {
	for _, scope := range scopes(image) {
		if list, ok := p.scopes[scope]; ok {
			return list
		}
	}
	return p.byDefault
}

// Rejects tells whether no image can meet one of the requirements.
func Rejects(requirements []Requirement) bool {
	return slices.ContainsFunc(requirements, func(r Requirement) bool { return r.kind == reject })
}

// Allows says why an image is not allowed under any of its names; without a name it has to meet the default, and is not
// signed. See Verify for the others.
func (p *Policy) Allows(names []reference.Named, signable []digest.Digest, signatures func(digest.Digest) ([]Signed, error)) error {
	if len(names) == 0 {
		if Rejects(p.byDefault) || slices.ContainsFunc(p.byDefault, func(r Requirement) bool { return r.kind == signed }) {
			return errors.New("an image without a name is rejected, as it cannot be signed")
		}
		return nil
	}
	var errs []error
	for _, named := range names {
		requirements := p.For(named)
		err := Verify(named, requirements, signable, signatures)
		if Rejects(requirements) {
			err = errors.New("it rejects images of this name")
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", named, err))
	}
	return errors.Join(errs...)
}

// scopes are all that an image is in, the narrowest first: itself, its repository and those above, its registry, domains
// with a wildcard, and all registries.
func scopes(image reference.Named) []string {
	list := []string{image.String()}
	name := image.Name()
	for name != "" {
		list = append(list, name)
		i := strings.LastIndexByte(name, '/')
		name = name[:max(i, 0)]
	}
	host := reference.Domain(image)
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i] // domains have no port
	}
	for {
		_, above, ok := strings.Cut(host, ".")
		if !ok {
			break
		}
		list = append(list, "*."+above)
		host = above
	}
	return append(list, "")
}

// strict decodes JSON into v and refuses what v does not have, as well as keys that come twice.
func strict(data []byte, v any) error {
	if err := unique(json.NewDecoder(bytes.NewReader(data))); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// unique refuses an object with a key that comes twice, of which decoding would keep the last.
func unique(dec *json.Decoder) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	open, nested := token.(json.Delim)
	if !nested {
		return nil
	}
	var keys []string
	for dec.More() {
		if open == '{' {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name, _ := key.(string)
			if slices.Contains(keys, name) {
				return fmt.Errorf("%q comes twice", name)
			}
			keys = append(keys, name)
		}
		if err := unique(dec); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}
