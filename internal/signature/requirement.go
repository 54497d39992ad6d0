package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// minRSA is the shortest RSA key that is taken, in bits.
const minRSA = 2048

type kind string

const (
	accept kind = "insecureAcceptAnything"
	reject kind = "reject"
	signed kind = "sigstoreSigned"
)

// Requirement is one condition on an image.
type Requirement struct {
	kind     kind
	keys     []crypto.PublicKey
	identity identity
}

func parseRequirement(data []byte, read func(path string) ([]byte, error)) (Requirement, error) {
	var head struct {
		Type kind `json:"type"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return Requirement{}, err
	}
	switch head.Type {
	case accept, reject:
		if err := strict(data, &head); err != nil {
			return Requirement{}, fmt.Errorf("%s: %w", head.Type, err)
		}
		return Requirement{kind: head.Type}, nil
	case signed:
		r, err := parseSigned(data, read)
		if err != nil {
			return Requirement{}, fmt.Errorf("%s: %w", head.Type, err)
		}
		return r, nil
	}
	return Requirement{}, fmt.Errorf("a requirement of type %q cannot be checked here; %s, %s and %s can", head.Type, accept, reject, signed)
}

// parseSigned reads a requirement of a signature by a key. Others, by certificates or with a transparency log, have fields
// that are refused.
func parseSigned(data []byte, read func(path string) ([]byte, error)) (Requirement, error) {
	var file struct {
		Type     kind            `json:"type"`
		KeyPath  string          `json:"keyPath"`
		KeyPaths []string        `json:"keyPaths"`
		KeyData  []byte          `json:"keyData"`
		KeyDatas [][]byte        `json:"keyDatas"`
		Identity json.RawMessage `json:"signedIdentity"`
	}
	if err := strict(data, &file); err != nil {
		return Requirement{}, fmt.Errorf("%w; only keyPath, keyPaths, keyData, keyDatas and signedIdentity are known here", err)
	}
	sources := 0
	for _, given := range []bool{file.KeyPath != "", len(file.KeyPaths) > 0, len(file.KeyData) > 0, len(file.KeyDatas) > 0} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		return Requirement{}, errors.New("give one of keyPath, keyPaths, keyData and keyDatas")
	}
	r := Requirement{kind: signed}
	paths, blocks := file.KeyPaths, file.KeyDatas
	if file.KeyPath != "" {
		paths = append(paths, file.KeyPath)
	}
	if len(file.KeyData) > 0 {
		blocks = append(blocks, file.KeyData)
	}
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			return r, fmt.Errorf("key %q: not an absolute path", path)
		}
		block, err := read(path)
		if err != nil {
			return r, fmt.Errorf("key: %w", err)
		}
		blocks = append(blocks, block)
	}
	for _, block := range blocks {
		key, err := parseKey(block)
		if err != nil {
			return r, err
		}
		r.keys = append(r.keys, key)
	}
	var err error
	r.identity, err = parseIdentity(file.Identity)
	return r, err
}

// parseKey reads a public key in PEM.
func parseKey(data []byte) (crypto.PublicKey, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" || len(slices.DeleteFunc(rest, func(b byte) bool { return b == '\n' || b == '\r' || b == ' ' })) > 0 {
		return nil, errors.New("key: not one PEM block of type PUBLIC KEY, as `cosign generate-key-pair` makes it")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return key, nil
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return nil, fmt.Errorf("key: RSA with %d bits; at least %d are taken", k.N.BitLen(), minRSA)
		}
		return key, nil
	}
	return nil, fmt.Errorf("key: %T is neither ECDSA, Ed25519 nor RSA", key)
}

// verify tells whether the key made this signature of the payload.
func verify(key crypto.PublicKey, payload, signature []byte) bool {
	sum := sha256.Sum256(payload)
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, sum[:], signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, payload, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], signature) == nil
	}
	return false
}

// Verify checks the signatures of an image against all requirements. Signed may be what was asked for, an index perhaps, or
// the manifest for this platform: a digest covers what is below it. An error of signatures ends it and is returned as it is.
func Verify(image reference.Named, requirements []Requirement, signable []digest.Digest, signatures func(digest.Digest) ([]Signed, error)) error {
	for _, r := range requirements {
		if r.kind != signed {
			continue
		}
		var errs []error
		for _, d := range signable {
			list, err := signatures(d)
			if err != nil {
				return err
			}
			if err = r.Check(image, d, list); err == nil {
				errs = nil
				break
			}
			errs = append(errs, fmt.Errorf("%s: %w", d, err))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}
