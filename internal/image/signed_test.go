package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// signer makes signatures, as cosign does, and has a policy that asks for them.
type signer struct {
	*ecdsa.PrivateKey
	policy string
}

func newSigner(t *testing.T, r *testRegistry) signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	s := signer{key, filepath.Join(t.TempDir(), "policy.json")}
	s.write(t, fmt.Sprintf(`{"default":[{"type":"reject"}],"transports":{"docker":{
		%q:[{"type":"insecureAcceptAnything"}],
		%q:[{"type":"sigstoreSigned","keyData":%q,"signedIdentity":{"type":"matchRepository"}}]}}}`, r.host+"/free", r.host+"/signed", public))
	return s
}

func (s signer) write(t *testing.T, policy string) {
	t.Helper()
	if err := os.WriteFile(s.policy, []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
}

// sign puts a signature of a manifest beside an image of the repository.
func (s signer) sign(t *testing.T, r *testRegistry, repo string, d digest.Digest) {
	t.Helper()
	payload := fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, r.host+"/"+repo, d)
	sum := sha256.Sum256(payload)
	made, err := ecdsa.SignASN1(rand.Reader, s.PrivateKey, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	layer := ocispec.Descriptor{
		MediaType: signatureLayer, Digest: digest.FromBytes(payload), Size: int64(len(payload)),
		Annotations: map[string]string{signatureAnnotation: base64.StdEncoding.EncodeToString(made)},
	}
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{{MediaType: "other"}, layer}}
	rawImage(t, r, repo+":"+strings.Replace(d.String(), ":", "-", 1)+".sig", manifest, types.OCIManifestSchema1, struct{}{}, payload)
}

func TestSignatures(t *testing.T) {
	r := newRegistry(t)
	key, other := newSigner(t, r), newSigner(t, r)
	service := openService(t, func(o *Options) { o.SignaturePolicy = key.policy })
	pull := func(ref string) error {
		_, err := service.Pull(t.Context(), PullRequest{Ref: ref})
		return err
	}
	refused := func(ref, reason string) {
		t.Helper()
		if err := pull(ref); !errors.Is(err, ErrSignature) || !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: got %v, want a refusal because of %q", ref, err, reason)
		}
	}
	img := makeImage(t, thisArch, "one")
	manifest, _, layers := digests(t, img)

	if err := pull(r.push(t, "free/app:1", img)); err != nil {
		t.Error(err)
	}
	refused(r.push(t, "other/app:1", img), "rejects")
	refused(r.push(t, "signed/app:1", img), "not signed")
	other.sign(t, r, "signed/app", manifest)
	refused(r.host+"/signed/app:1", "not made with a key")
	key.sign(t, r, "signed/app", manifest)
	if err := pull(r.host + "/signed/app:1"); err != nil {
		t.Error(err)
	}
	if err := pull(r.host + "/signed/app@" + manifest.String()); err != nil {
		t.Error(err)
	}

	// Of an image for several platforms the index may be signed, or the manifest for this one.
	for name, signable := range map[string]func(v1.ImageIndex, v1.Image) digest.Digest{
		"index":    func(i v1.ImageIndex, _ v1.Image) digest.Digest { d, _ := i.Digest(); return digest.Digest(d.String()) },
		"manifest": func(_ v1.ImageIndex, m v1.Image) digest.Digest { d, _ := m.Digest(); return digest.Digest(d.String()) },
	} {
		mine := makeImage(t, thisArch, name)
		index := indexOf(t, map[string]v1.Image{thisArch: mine, "s390x": makeImage(t, "s390x", name)})
		ref := r.push(t, "signed/"+name+":1", index)
		refused(ref, "not signed")
		key.sign(t, r, "signed/"+name, signable(index, mine))
		if err := pull(ref); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	// A signature for another repository does not count, nor one that a mirror has changed.
	ref := r.push(t, "signed/copy:1", img)
	key.sign(t, r, "signed/app", manifest)
	r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasPrefix(req.URL.Path, "/v2/signed/copy/") || !strings.Contains(req.URL.Path, ".sig") && req.Method != http.MethodGet {
			return false
		}
		req.URL.Path = strings.Replace(req.URL.Path, "/copy/", "/app/", 1)
		return false
	})
	refused(ref, "is asked for")

	// A change of the policy counts at once; one that cannot be read refuses everything.
	r.setIntercept(nil)
	key.write(t, `{"default":[{"type":"reject"}]}`)
	refused(r.host+"/free/app:1", "rejects")
	key.write(t, `{"default":[{"type":"signedBy"}]}`)
	refused(r.host+"/free/app:1", "cannot be checked")
	if n := r.blobRequests(layers[0]); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	if _, err := Open(t.Context(), Options{Root: t.TempDir(), SignaturePolicy: key.policy}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a policy that cannot be checked: %v", err)
	}
}

// TestAllowed: what is on the node already has to meet the policy of the moment when it is run.
func TestAllowed(t *testing.T) {
	r := newRegistry(t)
	key, other := newSigner(t, r), newSigner(t, r)
	policy := filepath.Join(t.TempDir(), "policy.json")
	use := func(from string) {
		t.Helper()
		text, err := os.ReadFile(from)
		if err := errors.Join(err, os.WriteFile(policy, text, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	anything := filepath.Join(t.TempDir(), "anything.json")
	if err := os.WriteFile(anything, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	use(anything)
	service := openService(t, func(o *Options) { o.SignaturePolicy = policy })
	pull := func(ref string) Image {
		t.Helper()
		img, err := service.Pull(t.Context(), PullRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	check := func(when, ref string, img Image, reason string) {
		t.Helper()
		err := service.Allowed(t.Context(), ref, img)
		if reason == "" && err != nil || reason != "" && (!errors.Is(err, ErrSignature) || !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), reason)) {
			t.Errorf("%s: %s: got %v, want %q", when, ref, err, reason)
		}
	}
	one := makeImage(t, thisArch, "one")
	manifest, _, _ := digests(t, one)
	key.sign(t, r, "signed/app", manifest)
	free, signed, others := r.push(t, "free/app:1", makeImage(t, thisArch, "free")), r.push(t, "signed/app:1", one), r.push(t, "other/app:1", makeImage(t, thisArch, "other"))
	freeImage, signedImage, otherImage := pull(free), pull(signed), pull(others)
	check("anything goes", others, otherImage, "")

	use(key.policy)
	check("a policy that came later", free, freeImage, "")
	check("a policy that came later", others, otherImage, "rejects")
	check("pulled before the policy", signed, signedImage, "pull it again")
	signedImage = pull(signed)
	check("pulled again", signed, signedImage, "")
	check("by its id", signedImage.ID.String(), signedImage, "")
	check("by a name that it does not have", "another/name:1", signedImage, "")

	use(other.policy)
	check("another key", signed, signedImage, "not made with a key")
	use(key.policy)
	check("the first key again", signed, signedImage, "")
	check("no name at all", freeImage.ID.String(), Image{ID: freeImage.ID, Manifest: freeImage.Manifest, Tags: []string{freeImage.ID.String()}}, "rejects")

	// The same image has a name that is not allowed, and one that is: who asks for it by either is told of that.
	use(anything)
	both := pull(r.push(t, "other/same:1", one))
	use(key.policy)
	check("its other name", r.host+"/other/same:1", both, "rejects")
	check("its good name", signed, both, "")
	check("either name", both.ID.String(), both, "")

	if err := os.WriteFile(policy, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("a policy that cannot be read", free, freeImage, "policy")

	files := func() int {
		entries, err := os.ReadDir(filepath.Join(service.opts.Root, "signatures"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	if n := files(); n != 1 {
		t.Errorf("signatures of %d images are kept", n)
	}
	if err := service.Remove(t.Context(), signedImage.ID.String()); err != nil {
		t.Fatal(err)
	}
	if n := files(); n != 0 {
		t.Errorf("signatures of %d images are left", n)
	}
}

func TestUnreachableSignatures(t *testing.T) {
	r := newRegistry(t)
	key := newSigner(t, r)
	service := openService(t, func(o *Options) { o.SignaturePolicy = key.policy })
	ref := r.push(t, "signed/app:1", makeImage(t, thisArch, "one"))
	r.setIntercept(func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, ".sig") {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return true
		}
		return false
	})
	if _, err := service.Pull(t.Context(), PullRequest{Ref: ref}); !errdefs.IsUnavailable(err) || errors.Is(err, ErrSignature) {
		t.Errorf("signatures that cannot be had: %v", err)
	}
}
