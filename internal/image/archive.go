package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import reads images from an OCI or a docker archive, also a compressed one, and returns those that are for this node's
// platform. Their names come from the archive; an image without one has its id alone. All are registered or none.
//
// Errors: InvalidArgument for what is no image archive, DataLoss for a damaged one, FailedPrecondition when it holds no
// image that this node can run, ResourceExhausted for a full disk.
func (s *Service) Import(ctx context.Context, r io.Reader) (_ []Image, err error) {
	ctx, release, err := s.lease(s.scope(ctx), leaseTemp, "import")
	if err != nil {
		return nil, fmt.Errorf("import: %w", classify(err))
	}
	defer func() { release(ctx, err) }()
	out, err := s.importAll(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("import: %w", classify(err))
	}
	return out, nil
}

func (s *Service) importAll(ctx context.Context, r io.Reader) ([]Image, error) {
	tar, done, err := decompress(&contextReader{ctx, r})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer done()
	desc, err := archive.ImportIndex(ctx, &importStore{Store: s.content, prefix: "import-" + uuid.NewString() + "-"}, tar)
	if err != nil {
		if err = classify(err); errdefs.IsInternal(err) {
			err = reclass(fmt.Errorf("neither an OCI nor a docker archive: %w", err), errdefs.ErrInvalidArgument)
		}
		return nil, err
	}
	var index ocispec.Index
	if err := s.read(ctx, desc, maxManifestSize, s.present, &index); err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	if len(index.Manifests) > maxIndexEntries {
		return nil, refuse("%d images in one archive, at most %d are accepted", len(index.Manifests), maxIndexEntries)
	}
	return s.importIndex(ctx, index)
}

// importIndex registers the images of an archive's index.
func (s *Service) importIndex(ctx context.Context, index ocispec.Index) ([]Image, error) {
	f := &flight{} // holds the layers while their forms are made
	defer s.settle(f)
	var all []registration
	var refused error
	for _, desc := range index.Manifests {
		if desc.Platform != nil && desc.Platform.OS == "unknown" {
			continue // attestations
		}
		r, err := s.importOne(ctx, f, desc)
		if errdefs.IsFailedPrecondition(err) {
			refused = err
			continue
		} else if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	if len(all) == 0 {
		if refused != nil {
			return nil, refused
		}
		return nil, fmt.Errorf("the archive holds no image: %w", errdefs.ErrInvalidArgument)
	}
	if err := s.register(ctx, all...); err != nil {
		return nil, err
	}
	return s.findAll(ctx, all)
}

func (s *Service) importOne(ctx context.Context, f *flight, desc ocispec.Descriptor) (registration, error) {
	p, err := s.resolve(ctx, desc, s.present)
	if err != nil {
		return registration{}, err
	}
	for _, l := range p.manifest.Layers {
		if err := s.present(ctx, l); err != nil {
			return registration{}, err
		}
	}
	names, err := importNames(desc, p)
	if err != nil {
		return registration{}, err
	}
	r := registration{names: names, target: desc, image: p}
	if err := s.label(ctx, p); err != nil {
		return registration{}, err
	}
	return r, s.prepare(ctx, f, r, nil)
}

func (s *Service) findAll(ctx context.Context, all []registration) ([]Image, error) {
	var out []Image
	seen := map[digest.Digest]bool{}
	for _, r := range all {
		id := r.image.manifest.Config.Digest
		if seen[id] {
			continue
		}
		seen[id] = true
		img, err := s.find(ctx, id)
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

// importNames are the names that an archive gives an image.
func importNames(desc ocispec.Descriptor, p parsedManifest) ([]string, error) {
	name := desc.Annotations[images.AnnotationImageName]
	if name == "" {
		// An OCI layout names a tag alone, or everything.
		if ref := desc.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(ref, "/:") {
			name = ref
		}
	}
	if name == "" {
		return []string{p.manifest.Config.Digest.String()}, nil
	}
	named, err := parse(name)
	if err != nil {
		return nil, err
	}
	names := []string{digestName(named, desc.Digest.String())}
	if _, ok := named.(reference.Tagged); ok {
		names = append(names, named.String())
	}
	return names, nil
}

// importStore gives each import ingests of its own: containerd names them after files in the archive, and two
// archives may both have a layer.tar.
type importStore struct {
	content.Store
	prefix string
}

func (i *importStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	return i.Store.Writer(ctx, append(opts, func(o *content.WriterOpts) error { o.Ref = i.prefix + o.Ref; return nil })...)
}

// ReaderAt refuses documents that are too large to be read into memory, which is what is done with them.
func (i *importStore) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	ra, err := i.Store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	if (images.IsConfigType(desc.MediaType) || images.IsManifestType(desc.MediaType)) && ra.Size() > maxConfigSize {
		return nil, errors.Join(refuse("%s has %d bytes, up to %d are accepted", desc.Digest, ra.Size(), maxConfigSize), ra.Close())
	}
	return ra, nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Export writes images, as refs name them, to an archive that both OCI tools and docker load. An image that is named by
// a tag keeps that tag, one that is named by its id all of them.
func (s *Service) Export(ctx context.Context, w io.Writer, refs ...string) error {
	if len(refs) == 0 {
		return fmt.Errorf("export: no images named: %w", errdefs.ErrInvalidArgument)
	}
	ctx = s.scope(ctx)
	hold := leaseTemp + uuid.NewString()
	err := s.export(ctx, hold, w, refs)
	if err = errors.Join(err, s.release(ctx, hold)); err != nil {
		return fmt.Errorf("export: %w", classify(err))
	}
	return nil
}

func (s *Service) export(ctx context.Context, hold string, w io.Writer, refs []string) error {
	var opts []archive.ExportOpt
	for _, ref := range refs {
		img, err := s.Get(ctx, ref)
		if err != nil {
			return err
		}
		if err := s.hold(ctx, hold, img); err != nil {
			return err
		}
		names := img.Tags
		if full, err := Normalize(ref); err == nil && slices.Contains(img.Tags, full) {
			names = []string{full}
		}
		opts = append(opts, archive.WithManifest(img.Manifest, names...))
	}
	return archive.Export(ctx, s.content, w, opts...)
}
