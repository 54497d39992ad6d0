package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Bounds on what an image may consist of.
const (
	maxManifestSize = 4 << 20 // bytes of a manifest or an index
	maxConfigSize   = 8 << 20 // bytes of an image's config
	maxLayers       = 127
	maxIndexEntries = 1000
	maxIndexDepth   = 3
)

// parsedManifest is an image of one platform after all checks.
type parsedManifest struct {
	desc     ocispec.Descriptor // of the manifest
	manifest ocispec.Manifest
	config   ocispec.Image
	// path leads from the target down to the manifest's parent: the indexes between them.
	path []ocispec.Descriptor
}

func (p parsedManifest) layers() []Layer {
	layers := make([]Layer, len(p.manifest.Layers))
	for i, blob := range p.manifest.Layers {
		layers[i] = Layer{Blob: blob, DiffID: p.config.RootFS.DiffIDs[i]}
	}
	return layers
}

func (p parsedManifest) size() int64 {
	size := p.desc.Size + p.manifest.Config.Size
	for _, l := range p.manifest.Layers {
		size += l.Size
	}
	return size
}

// ensure makes a blob available in the content store.
type ensure func(ctx context.Context, desc ocispec.Descriptor) error

// resolve finds the manifest for this node's platform below target and checks it and its config. Layers are not touched.
func (s *Service) resolve(ctx context.Context, target ocispec.Descriptor, get ensure) (parsedManifest, error) {
	var path []ocispec.Descriptor
	desc := target
	for images.IsIndexType(desc.MediaType) {
		if path = append(path, desc); len(path) > maxIndexDepth {
			return parsedManifest{}, refuse("more than %d indexes lead to the manifest", maxIndexDepth)
		}
		var index ocispec.Index
		if err := s.read(ctx, desc, maxManifestSize, get, &index); err != nil {
			return parsedManifest{}, fmt.Errorf("index: %w", err)
		}
		next, err := s.choose(index)
		if err != nil {
			return parsedManifest{}, err
		}
		desc = next
	}
	p, err := s.readManifest(ctx, desc, get)
	p.path = path
	return p, err
}

// choose picks from an index what fits this node best.
func (s *Service) choose(index ocispec.Index) (ocispec.Descriptor, error) {
	if len(index.Manifests) > maxIndexEntries {
		return ocispec.Descriptor{}, refuse("index: %d entries, at most %d are accepted", len(index.Manifests), maxIndexEntries)
	}
	var best *ocispec.Descriptor
	var offered []string
	for i := range index.Manifests {
		m := &index.Manifests[i]
		if !images.IsManifestType(m.MediaType) && !images.IsIndexType(m.MediaType) {
			continue
		}
		switch {
		case m.Platform == nil: // acceptable where nothing says that it fits; its config decides
			if best == nil {
				best = m
			}
		case !s.platform.Match(*m.Platform):
			if m.Platform.OS != "unknown" { // attestations are not for any platform
				offered = append(offered, platforms.Format(*m.Platform))
			}
		case best == nil, best.Platform == nil, s.platform.Less(*m.Platform, *best.Platform):
			best = m
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, refuse("the image is for %s, this node is %s", list(offered), platforms.Format(platforms.DefaultSpec()))
	}
	return *best, nil
}

func list(platforms []string) string {
	const most = 12
	switch {
	case len(platforms) == 0:
		return "no platform"
	case len(platforms) > most:
		return strings.Join(platforms[:most], ", ") + ", …"
	}
	return strings.Join(platforms, ", ")
}

func (s *Service) readManifest(ctx context.Context, desc ocispec.Descriptor, get ensure) (parsedManifest, error) {
	if err := checkManifestType(desc.MediaType); err != nil {
		return parsedManifest{}, err
	}
	p := parsedManifest{desc: desc}
	if err := s.read(ctx, desc, maxManifestSize, get, &p.manifest); err != nil {
		return parsedManifest{}, fmt.Errorf("manifest: %w", err)
	}
	if err := checkManifest(p.manifest); err != nil {
		return parsedManifest{}, fmt.Errorf("manifest: %w", err)
	}
	if err := s.read(ctx, p.manifest.Config, maxConfigSize, get, &p.config); err != nil {
		return parsedManifest{}, fmt.Errorf("image config: %w", err)
	}
	if err := s.checkConfig(p.config, len(p.manifest.Layers)); err != nil {
		return parsedManifest{}, fmt.Errorf("image config: %w", err)
	}
	return p, nil
}

func checkManifestType(mediaType string) error {
	switch {
	case images.IsManifestType(mediaType):
		return nil
	case strings.HasPrefix(mediaType, "application/vnd.docker.distribution.manifest.v1"):
		return refuse("the image has a schema 1 manifest, which is obsolete; build or push it again with a current tool")
	default:
		return refuse("media type %q is no image manifest", mediaType)
	}
}

func checkManifest(m ocispec.Manifest) error {
	if !images.IsConfigType(m.Config.MediaType) {
		return refuse("not a container image: its config has media type %q", m.Config.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return refuse("%d layers, at most %d can be mounted", len(m.Layers), maxLayers)
	}
	for i, l := range m.Layers {
		if err := checkLayer(l); err != nil {
			return fmt.Errorf("layer %d (%.80s): %w", i, l.Digest, err)
		}
	}
	return nil
}

func checkLayer(l ocispec.Descriptor) error {
	if err := l.Digest.Validate(); err != nil {
		return corrupt("invalid digest: %w", err)
	}
	if l.Size <= 0 {
		return corrupt("size %d", l.Size)
	}
	if images.IsNonDistributable(l.MediaType) || l.MediaType == images.MediaTypeDockerSchema2LayerForeign ||
		strings.HasPrefix(l.MediaType, "application/vnd.oci.image.layer.nondistributable") || len(l.URLs) > 0 {
		return refuse("a foreign layer, which is not in the registry; use an image that holds all its layers")
	}
	switch l.MediaType {
	case images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerZstd,
		ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd:
		return nil
	}
	return refuse("media type %q is not supported: tar, tar+gzip and tar+zstd are", l.MediaType)
}

func (s *Service) checkConfig(c ocispec.Image, layers int) error {
	if len(c.RootFS.DiffIDs) != layers {
		return corrupt("%d diff ids for %d layers", len(c.RootFS.DiffIDs), layers)
	}
	for _, id := range c.RootFS.DiffIDs {
		if err := id.Validate(); err != nil {
			return corrupt("invalid diff id: %w", err)
		}
	}
	if c.OS == "" && c.Architecture == "" { // as of archives that were imported without saying
		return nil
	}
	if p := platforms.Normalize(c.Platform); !s.platform.Match(p) {
		return refuse("the image is for %s, this node is %s", platforms.Format(p), platforms.Format(platforms.DefaultSpec()))
	}
	return nil
}

// read decodes a JSON blob of at most limit bytes. It was verified when it came, and is again: a disk may have lost parts.
func (s *Service) read(ctx context.Context, desc ocispec.Descriptor, limit int64, get ensure, into any) error {
	if err := desc.Digest.Validate(); err != nil {
		return corrupt("invalid digest: %w", err)
	}
	if desc.Size <= 0 || desc.Size > limit {
		return refuse("%s has %d bytes, up to %d are accepted", desc.Digest, desc.Size, limit)
	}
	if err := get(ctx, desc); err != nil {
		return err
	}
	desc.Data = nil // never trusted: what is in the store was verified
	info, err := s.content.Info(ctx, desc.Digest)
	if err != nil {
		return err
	}
	if info.Size != desc.Size {
		return corrupt("%s has %d bytes instead of %d", desc.Digest, info.Size, desc.Size)
	}
	raw, err := content.ReadBlob(ctx, s.content, desc)
	if errdefs.IsNotFound(err) {
		return s.damaged(ctx, desc.Digest, "blob %s on this node has gone", desc.Digest)
	} else if err != nil {
		return err
	}
	if desc.Digest.Algorithm().FromBytes(raw) != desc.Digest {
		return s.damaged(ctx, desc.Digest, "blob %s on this node is not what its digest says", desc.Digest)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return corrupt("%s: %w", desc.Digest, err)
	}
	return nil
}

// present is the ensure of images that must be in the store already.
func (s *Service) present(ctx context.Context, desc ocispec.Descriptor) error {
	if _, err := s.content.Info(ctx, desc.Digest); errdefs.IsNotFound(err) {
		return corrupt("blob %s is missing", desc.Digest)
	} else if err != nil {
		return err
	}
	return nil
}

// label makes each blob of an image keep the next from garbage collection: indexes the manifest, it the config and
// the layers.
func (s *Service) label(ctx context.Context, p parsedManifest) error {
	chain := append(slices.Clone(p.path), p.desc)
	for i, parent := range chain[:len(chain)-1] {
		if err := s.setRefs(ctx, parent.Digest, []digest.Digest{chain[i+1].Digest}); err != nil {
			return err
		}
	}
	children := []digest.Digest{p.manifest.Config.Digest}
	for _, l := range p.manifest.Layers {
		children = append(children, l.Digest)
	}
	return s.setRefs(ctx, p.desc.Digest, children)
}

func (s *Service) setRefs(ctx context.Context, parent digest.Digest, children []digest.Digest) error {
	info := content.Info{Digest: parent, Labels: map[string]string{}}
	var fields []string
	for i, child := range children {
		key := fmt.Sprintf("containerd.io/gc.ref.content.%d", i)
		info.Labels[key] = child.String()
		fields = append(fields, "labels."+key)
	}
	_, err := s.content.Update(ctx, info, fields...)
	return err
}
