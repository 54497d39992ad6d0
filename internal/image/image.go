package image

import (
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pistis-run/pistis/internal/image/registry"
)

// Image is one image of this node, resolved for its platform.
type Image struct {
	// ID is the digest of the image's config, as sha256:….
	ID digest.Digest
	// Target is the manifest (or index) that was pulled.
	Target ocispec.Descriptor
	// Manifest is the one for this platform.
	Manifest ocispec.Descriptor
	// Tags and Digests are the names it has: docker.io/library/x:1, docker.io/library/x@sha256:….
	Tags, Digests []string
	// Size of all blobs in bytes.
	Size   int64
	Config ocispec.Image
	Layers []Layer
	// Pinned images are never removed by the kubelet's garbage collection.
	Pinned bool
	Pulled time.Time
}

// Layer is one layer, the lowest first in Image.Layers.
type Layer struct {
	// Blob is the compressed content.
	Blob ocispec.Descriptor
	// DiffID is the digest of the uncompressed tar.
	DiffID digest.Digest
}

// Auth is how CRI passes credentials.
type Auth = registry.Auth

// PullRequest names an image to pull.
type PullRequest struct {
	Ref  string
	Auth *Auth
	// Progress, where set, is called with a snapshot from time to time, and once at the end.
	Progress func(Progress)
}

// Progress of a pull.
type Progress struct {
	Ref    string
	Status string // resolving, downloading, converting, done
	// Offset and Total in bytes over all blobs; Total is 0 while unknown.
	Offset, Total int64
	Blobs         []BlobProgress
}

// BlobProgress is one blob of it.
type BlobProgress struct {
	Digest        digest.Digest
	Offset, Total int64
}

// FSInfo is what a file system of ours uses.
type FSInfo struct {
	Mountpoint string
	UsedBytes  uint64
	UsedInodes uint64
	At         time.Time
}
