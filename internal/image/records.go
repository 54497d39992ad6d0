package image

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/pistis-run/pistis/internal/logfields"
)

// A record gives an image one name. Its labels say which image of an index it is on this node.
const (
	labelConfig   = "pistis.run/config"
	labelManifest = "pistis.run/manifest"
	labelType     = "pistis.run/manifest-type"
)

// registration is an image about to get its names.
type registration struct {
	names  []string
	target ocispec.Descriptor
	image  parsedManifest
}

// register gives images their names, all or none. A name that another image had moves over.
func (s *Service) register(ctx context.Context, all ...registration) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, r := range all {
			for _, name := range r.names {
				if err := s.put(ctx, name, r); err != nil {
					return fmt.Errorf("register %s: %w", name, err)
				}
			}
		}
		return nil
	})
}

func (s *Service) put(ctx context.Context, name string, r registration) error {
	record := images.Image{
		Name:   name,
		Target: ocispec.Descriptor{MediaType: r.target.MediaType, Digest: r.target.Digest, Size: r.target.Size},
		Labels: map[string]string{
			labelConfig:   r.image.manifest.Config.Digest.String(),
			labelManifest: r.image.desc.Digest.String(),
			labelType:     r.image.desc.MediaType,
		},
	}
	_, err := s.images.Create(ctx, record)
	if errdefs.IsAlreadyExists(err) {
		_, err = s.images.Update(ctx, record)
	}
	return err
}

// load reads a manifest and its config from the store, or from memory: content never changes.
func (s *Service) load(ctx context.Context, manifest digest.Digest) (parsedManifest, error) {
	s.mu.Lock()
	p, ok := s.parsed[manifest]
	s.mu.Unlock()
	if ok {
		return p, nil
	}
	info, err := s.content.Info(ctx, manifest)
	if err != nil {
		return p, err
	}
	p, err = s.readManifest(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: manifest, Size: info.Size}, s.present)
	if err != nil {
		return p, err
	}
	if p.manifest.MediaType != "" {
		p.desc.MediaType = p.manifest.MediaType
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parsed[manifest] = p
	return p, nil
}

// forgetParsed drops from memory what has gone from the store.
func (s *Service) forgetParsed(ctx context.Context) {
	s.mu.Lock()
	known := slices.Collect(maps.Keys(s.parsed))
	s.mu.Unlock()
	for _, d := range known {
		if _, err := s.content.Info(ctx, d); errdefs.IsNotFound(err) {
			s.mu.Lock()
			delete(s.parsed, d)
			s.mu.Unlock()
		}
	}
}

// List returns all images, those pulled last first.
func (s *Service) List(ctx context.Context) ([]Image, error) {
	ctx = s.scope(ctx)
	records, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", classify(err))
	}
	byID := map[string][]images.Image{}
	for _, r := range records {
		id := r.Labels[labelConfig]
		byID[id] = append(byID[id], r)
	}
	var out []Image
	for id, names := range byID {
		img, err := s.assemble(ctx, names)
		if err != nil {
			s.opts.Log.Warn("an image cannot be read; pull it again", logfields.ID, id, logfields.Error, err)
			continue
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int {
		if c := b.Pulled.Compare(a.Pulled); c != 0 {
			return c
		}
		return strings.Compare(string(a.ID), string(b.ID))
	})
	return out, nil
}

// assemble makes an image of its records.
func (s *Service) assemble(ctx context.Context, records []images.Image) (Image, error) {
	newest := slices.MaxFunc(records, func(a, b images.Image) int { return a.UpdatedAt.Compare(b.UpdatedAt) })
	p, err := s.load(ctx, digest.Digest(newest.Labels[labelManifest]))
	if err != nil {
		return Image{}, err
	}
	p.desc.MediaType = newest.Labels[labelType]
	img := Image{
		ID: p.manifest.Config.Digest, Target: newest.Target, Manifest: p.desc, Size: p.size(),
		Config: p.config, Layers: p.layers(), Pulled: newest.UpdatedAt,
	}
	for _, r := range records {
		switch {
		case isTag(r.Name):
			img.Tags = append(img.Tags, r.Name)
		case isDigest(r.Name):
			img.Digests = append(img.Digests, r.Name)
		}
		img.Pinned = img.Pinned || s.isPinned(r.Name)
	}
	slices.Sort(img.Tags)
	slices.Sort(img.Digests)
	return img, nil
}

// Get finds an image by a name (busybox, registry/app:1, app@sha256:…), by its id, or by a prefix of the id of at least
// six digits. NotFound when there is none, InvalidArgument when the prefix fits several.
func (s *Service) Get(ctx context.Context, ref string) (Image, error) {
	ctx = s.scope(ctx)
	records, err := s.lookup(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	img, err := s.assemble(ctx, records)
	if err != nil {
		return Image{}, fmt.Errorf("image %q: its content cannot be read, pull it again: %w", ref, classify(err))
	}
	return img, nil
}

// find gets an image by its exact id.
func (s *Service) find(ctx context.Context, id digest.Digest) (Image, error) {
	return s.Get(ctx, id.String())
}

// lookup returns all records of the image that ref names.
func (s *Service) lookup(ctx context.Context, ref string) ([]images.Image, error) {
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", ref, classify(err))
	}
	id, err := identify(all, ref)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(r images.Image) bool { return r.Labels[labelConfig] != id }), nil
}

// identify returns the id of the image that ref names.
func identify(all []images.Image, ref string) (string, error) {
	named, malformed := parse(ref)
	if malformed == nil && !fullID.MatchString(ref) {
		name := named.String()
		if i := slices.IndexFunc(all, func(r images.Image) bool { return r.Name == name }); i >= 0 {
			return all[i].Labels[labelConfig], nil
		}
	}
	if !partID.MatchString(ref) {
		if malformed != nil {
			return "", malformed
		}
		return "", fmt.Errorf("image %q: not on this node, pull it: %w", ref, errdefs.ErrNotFound)
	}
	prefix := "sha256:" + strings.TrimPrefix(ref, "sha256:")
	var id string
	for _, r := range all {
		switch candidate := r.Labels[labelConfig]; {
		case !strings.HasPrefix(candidate, prefix) || candidate == id:
		case id != "":
			return "", fmt.Errorf("image %q: the id fits several images, give more digits: %w", ref, errdefs.ErrInvalidArgument)
		default:
			id = candidate
		}
	}
	if id == "" {
		return "", fmt.Errorf("image %q: not on this node, pull it: %w", ref, errdefs.ErrNotFound)
	}
	return id, nil
}

// Remove removes the image that ref names, with all its names, and frees its disk space before it returns; what
// containers use stays until they have gone. Removing what is not there is no error.
func (s *Service) Remove(ctx context.Context, ref string) error {
	ctx = s.scope(ctx)
	records, err := s.lookup(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, r := range records {
			if err := s.images.Delete(ctx, r.Name); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove image %q: %w", ref, classify(err))
	}
	s.opts.Log.Info("image removed", logfields.Image, ref, logfields.ID, records[0].Labels[labelConfig])
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := s.collect(ctx); err != nil {
		return fmt.Errorf("remove image %q: %w", ref, classify(err))
	}
	return nil
}
