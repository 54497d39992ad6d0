package signature

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

func named(t testing.TB, s string) reference.Named {
	t.Helper()
	n, err := reference.ParseDockerRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func newKey(t testing.TB, kind string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch kind {
	case "ecdsa":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa short":
		key, err = rsa.GenerateKey(rand.Reader, 1024)
	case "ed25519":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func public(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// sign does as cosign.
func sign(t testing.TB, key crypto.Signer, name string, d digest.Digest) Signed {
	t.Helper()
	text := fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":{"by":"me"}}`, name, d, payloadType)
	return signText(t, key, text)
}

func signText(t testing.TB, key crypto.Signer, text string) Signed {
	t.Helper()
	message, opts := []byte(text), crypto.SignerOpts(crypto.Hash(0))
	if _, ed := key.(ed25519.PrivateKey); !ed {
		sum := sha256.Sum256(message)
		message, opts = sum[:], crypto.SHA256
	}
	made, err := key.Sign(rand.Reader, message, opts)
	if err != nil {
		t.Fatal(err)
	}
	return Signed{Payload: []byte(text), Signature: made}
}

func signedBy(t testing.TB, keys []byte, identity string) Requirement {
	t.Helper()
	if identity != "" {
		identity = `,"signedIdentity":` + identity
	}
	text := fmt.Sprintf(`{"type":"sigstoreSigned","keyData":%q%s}`, base64.StdEncoding.EncodeToString(keys), identity)
	r, err := parseRequirement([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKeys(t *testing.T) {
	d := digest.FromString("manifest")
	image := named(t, "registry.test/app:1")
	for _, kind := range []string{"ecdsa", "rsa", "ed25519"} {
		t.Run(kind, func(t *testing.T) {
			key := newKey(t, kind)
			r := signedBy(t, public(t, key), "")
			s := sign(t, key, "registry.test/app:1", d)
			if err := r.Check(image, d, []Signed{sign(t, newKey(t, kind), "registry.test/app:1", d), s}); err != nil {
				t.Error(err)
			}
			if err := r.Check(image, d, nil); err == nil {
				t.Error("an image without a signature was taken")
			}
			if err := r.Check(image, digest.FromString("other"), []Signed{s}); err == nil {
				t.Error("a signature of another manifest was taken")
			}
			s.Payload = append([]byte(" "), s.Payload...)
			if err := r.Check(image, d, []Signed{s}); err == nil {
				t.Error("a changed payload was taken")
			}
			s = sign(t, key, "registry.test/app:1", d)
			s.Signature[len(s.Signature)-1] ^= 1
			if err := r.Check(image, d, []Signed{s}); err == nil {
				t.Error("a changed signature was taken")
			}
		})
	}
}

func TestPayloads(t *testing.T) {
	d := digest.FromString("manifest")
	key := newKey(t, "ecdsa")
	r := signedBy(t, public(t, key), "")
	for _, text := range []string{
		"", "{}", "[]", `{"critical":{}}`,
		strings.Replace(string(sign(t, key, "registry.test/app:1", d).Payload), payloadType, "other", 1),
		strings.Replace(string(sign(t, key, "registry.test/app:1", d).Payload), `"critical"`, `"critical":{},"critical"`, 1),
		string(sign(t, key, "registry.test/app:1", d).Payload) + "{}",
	} {
		if err := r.Check(named(t, "registry.test/app:1"), d, []Signed{signText(t, key, text)}); err == nil {
			t.Errorf("taken: %s", text)
		}
	}
}

func TestIdentities(t *testing.T) {
	d := digest.FromString("manifest")
	key := newKey(t, "ecdsa")
	byDigest := "registry.test/app@" + d.String()
	tests := []struct {
		identity, image, name string
		ok                    bool
	}{
		{"", "registry.test/app:1", "registry.test/app:1", true},
		{"", "registry.test/app:1", "registry.test/app:2", false},
		{"", "registry.test/app:1", "registry.test/app", false},
		{"", byDigest, "registry.test/app", true},
		{"", byDigest, "registry.test/other", false},
		{"", "registry.test/app:1", "NO NAME", false},
		{`{"type":"matchExact"}`, byDigest, "registry.test/app", false},
		{`{"type":"matchExact"}`, "busybox", "docker.io/library/busybox:latest", true},
		{`{"type":"matchRepository"}`, "registry.test/app:1", "registry.test/app", true},
		{`{"type":"matchRepository"}`, "registry.test/app:1", "registry.test/app:9", true},
		{`{"type":"matchRepository"}`, "registry.test/app:1", "registry.test/app2", false},
		{`{"type":"exactReference","dockerReference":"registry.test/gold:1"}`, "registry.test/app:1", "registry.test/gold:1", true},
		{`{"type":"exactReference","dockerReference":"registry.test/gold:1"}`, "registry.test/app:1", "registry.test/app:1", false},
		{`{"type":"exactRepository","dockerRepository":"registry.test/gold"}`, "registry.test/app:1", "registry.test/gold:7", true},
		{`{"type":"exactRepository","dockerRepository":"registry.test/gold"}`, "registry.test/app:1", "registry.test/app:1", false},
		{`{"type":"remapIdentity","prefix":"mirror.test/x","signedPrefix":"vendor.test"}`, "mirror.test/x/app:1", "vendor.test/app:1", true},
		{`{"type":"remapIdentity","prefix":"mirror.test/x","signedPrefix":"vendor.test"}`, "mirror.test/x/app:1", "mirror.test/x/app:1", false},
		{`{"type":"remapIdentity","prefix":"mirror.test/x","signedPrefix":"vendor.test"}`, "mirror.test/xy/app:1", "mirror.test/xy/app:1", true},
	}
	for _, test := range tests {
		r := signedBy(t, public(t, key), test.identity)
		err := r.Check(named(t, test.image), d, []Signed{sign(t, key, test.name, d)})
		if (err == nil) != test.ok {
			t.Errorf("%s: %s signed as %s: %v", test.identity, test.image, test.name, err)
		}
	}
}

func TestScopes(t *testing.T) {
	entry := func(scope, kind string) string { return fmt.Sprintf(`%q:[{"type":%q}]`, scope, kind) }
	policy := func(scopes ...string) *Policy {
		text := fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{%s},"docker-daemon":{"":[{"type":"whatever"}]}}}`, strings.Join(scopes, ","))
		p, err := parse([]byte(text), nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	const image = "reg.example.com:5000/a/b/app:1"
	for _, scope := range []string{image, "reg.example.com:5000/a/b/app", "reg.example.com:5000/a/b", "reg.example.com:5000", "*.example.com", "*.com", ""} {
		p := policy(entry(scope, "insecureAcceptAnything"), entry("reg.example.com:5000/a/b/ap", "reject"), entry("reg.example.com", "reject"))
		if list := p.For(named(t, image)); len(list) != 1 || Rejects(list) {
			t.Errorf("scope %q was not found", scope)
		}
	}
	p := policy(entry("reg.example.com:5000/a", "insecureAcceptAnything"), entry("reg.example.com:5000/a/b", "reject"))
	if !Rejects(p.For(named(t, image))) || Rejects(p.For(named(t, "reg.example.com:5000/a/c"))) {
		t.Error("the narrowest scope does not win")
	}
	if !Rejects(p.For(named(t, "busybox"))) {
		t.Error("the default is not taken")
	}
}

func TestRefusedPolicies(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(public(t, newKey(t, "ecdsa")))
	short := base64.StdEncoding.EncodeToString(public(t, newKey(t, "rsa short")))
	one := func(requirement string) string { return `{"default":[` + requirement + `]}` }
	for name, text := range map[string]string{
		"nothing":        ``,
		"no default":     `{"transports":{}}`,
		"empty":          `{"default":[]}`,
		"unknown key":    `{"default":[{"type":"reject"}],"other":1}`,
		"unknown type":   one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}`),
		"no type":        one(`{}`),
		"extra field":    one(`{"type":"reject","keyPath":"/k"}`),
		"no key":         one(`{"type":"sigstoreSigned"}`),
		"two keys":       one(`{"type":"sigstoreSigned","keyPath":"/k","keyData":"` + key + `"}`),
		"no PEM":         one(`{"type":"sigstoreSigned","keyData":"aGVsbG8="}`),
		"short key":      one(`{"type":"sigstoreSigned","keyData":"` + short + `"}`),
		"relative key":   one(`{"type":"sigstoreSigned","keyPath":"k"}`),
		"missing key":    one(`{"type":"sigstoreSigned","keyPath":"/does/not/exist"}`),
		"certificates":   one(`{"type":"sigstoreSigned","fulcio":{}}`),
		"log":            one(`{"type":"sigstoreSigned","keyData":"` + key + `","rekorPublicKeyPath":"/k"}`),
		"identity":       one(`{"type":"sigstoreSigned","keyData":"` + key + `","signedIdentity":{"type":"any"}}`),
		"identity field": one(`{"type":"sigstoreSigned","keyData":"` + key + `","signedIdentity":{"type":"matchExact","prefix":"a"}}`),
		"twice":          `{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}`,
		"scope":          `{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"any"}]}}}`,
		"trailing":       one(`{"type":"reject"}`) + "x",
	} {
		path := filepath.Join(t.TempDir(), "policy.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(path); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load("/does/not/exist"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pub")
	key := newKey(t, "ecdsa")
	if err := os.WriteFile(path, public(t, key), 0o600); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(t.TempDir(), "policy.json")
	text, err := json.Marshal(map[string]any{"default": []any{map[string]any{"type": "sigstoreSigned", "keyPaths": []string{path}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(policy, text, 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := Load(policy)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("manifest")
	image := named(t, "registry.test/app:1")
	if r := p.For(image); len(r) != 1 || r[0].kind != signed || r[0].Check(image, d, []Signed{sign(t, key, "registry.test/app:1", d)}) != nil {
		t.Errorf("requirements: %+v", r)
	}
}

func FuzzPolicy(f *testing.F) {
	key := newKey(f, "ecdsa")
	f.Add([]byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"a":[{"type":"insecureAcceptAnything"}]}}}`))
	f.Add([]byte(`{"default":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"remapIdentity","prefix":"a","signedPrefix":"b"}}]}`))
	image := named(f, "registry.test/app:1")
	pub := public(f, key)
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parse(data, func(string) ([]byte, error) { return pub, nil })
		if err != nil {
			return
		}
		for _, r := range p.For(image) {
			if r.kind == signed && r.Check(image, digest.FromString("x"), []Signed{{Payload: data, Signature: data}}) == nil {
				t.Error("an unsigned image was taken")
			}
		}
	})
}

func FuzzPayload(f *testing.F) {
	d := digest.FromString("manifest")
	key := newKey(f, "ed25519")
	r := signedBy(f, public(f, key), "")
	f.Add(sign(f, key, "registry.test/app:1", d).Payload)
	image := named(f, "registry.test/app:1")
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = r.Check(image, d, []Signed{signText(t, key, string(data))})
	})
}
