package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/pistis-run/pistis/internal/logfields"
)

// A lease keeps blobs from garbage collection. The prefix of its id says whose it is.
const (
	leaseUse  = "use-"  // a container's
	leasePull = "pull-" // a pull's; it outlives a failure for a while, so that the next one goes on from there
	leaseTemp = "temp-" // an import's or an export's

	labelRef = "pistis.run/ref"

	resourceContent = "content"
)

// lease keeps what is written with the returned context until release. Of a failed pull it stays, where going on makes
// sense; of a successful one the leases of its failed predecessors go as well.
func (s *Service) lease(ctx context.Context, prefix, ref string) (context.Context, func(context.Context, error), error) {
	id := prefix + uuid.NewString()
	s.mu.Lock()
	s.active[id] = struct{}{}
	s.mu.Unlock()
	if _, err := s.leases.Create(ctx, leases.WithID(id), leases.WithLabel(labelRef, ref)); err != nil {
		s.forgetLease(id)
		return nil, nil, err
	}
	release := func(ctx context.Context, failure error) {
		s.forgetLease(id)
		ctx, cancel := detached(ctx)
		defer cancel()
		if failure != nil && prefix == leasePull && resumable(failure) {
			return
		}
		doomed := func(l leases.Lease) bool {
			return l.ID == id || (failure == nil && prefix == leasePull && strings.HasPrefix(l.ID, leasePull) && l.Labels[labelRef] == ref)
		}
		n, err := s.dropLeases(ctx, doomed)
		if err == nil && (failure != nil || n > 1) {
			err = s.collect(ctx)
		}
		if err != nil {
			s.opts.Log.Warn("cleaning up after an image transfer", logfields.Image, ref, logfields.Error, err)
		}
	}
	return leases.WithLease(ctx, id), release, nil
}

func (s *Service) forgetLease(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, id)
}

// resumable tells interruptions from failures that would come again.
func resumable(err error) bool {
	err = classify(err)
	return errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsDeadlineExceeded(err)
}

// dropLeases deletes the leases that doomed names, but those in use by this process.
func (s *Service) dropLeases(ctx context.Context, doomed func(leases.Lease) bool) (n int, err error) {
	all, err := s.leases.List(ctx)
	if err != nil {
		return 0, err
	}
	for _, l := range all {
		s.mu.Lock()
		_, active := s.active[l.ID]
		s.mu.Unlock()
		if active || !doomed(l) {
			continue
		}
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return n, err
		}
		n++
	}
	return n, nil
}

// dropStale deletes the leases that interrupted pulls left too long ago.
func (s *Service) dropStale(ctx context.Context) (int, error) {
	return s.dropLeases(ctx, func(l leases.Lease) bool {
		return strings.HasPrefix(l.ID, leasePull) && time.Since(l.CreatedAt) > resumeWindow
	})
}

// janitor removes what a process that died left behind, and later what interrupted pulls left, when nobody came to go on
// with it.
func (s *Service) janitor() {
	if err := s.sweep(context.WithoutCancel(s.ctx)); err != nil {
		s.opts.Log.Warn("image store: looking for what nobody uses", logfields.Error, err)
	}
	close(s.swept)
	tick := time.NewTicker(janitorInterval)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		n, err := s.dropStale(s.ctx)
		if err == nil && n > 0 {
			err = s.collect(s.ctx)
		}
		if err != nil && s.ctx.Err() == nil {
			s.opts.Log.Warn("removing interrupted downloads", logfields.Error, err)
		}
	}
}

// recover brings the store into order after a process that may have been killed.
func (s *Service) recover(ctx context.Context, blobs content.Store) error {
	if _, err := s.dropLeases(ctx, func(l leases.Lease) bool { return strings.HasPrefix(l.ID, leaseTemp) }); err != nil {
		return err
	}
	if _, err := s.dropStale(ctx); err != nil {
		return err
	}
	// A blob that the database knows must be there, or the next pull would take it for granted.
	var lost []digest.Digest
	err := s.content.Walk(ctx, func(info content.Info) error {
		if got, err := blobs.Info(ctx, info.Digest); errdefs.IsNotFound(err) || (err == nil && got.Size != info.Size) {
			lost = append(lost, info.Digest)
		} else if err != nil {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		return s.lose(ctx, lost...)
	}
	return nil
}

// sweep removes blobs that nobody refers to, on a disk that may be full. It waits for the disk a dozen times, so that no start
// of the daemon waits for it. A collection of garbage looks at the blob directory only after a deletion, and blobs whose
// transaction was lost in a crash are known to nobody who could delete them: hence the marker.
func (s *Service) sweep(ctx context.Context) error {
	marker := []byte("deleted at once")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(marker), Size: int64(len(marker))}
	if err := content.WriteBlob(ctx, s.content, "marker", bytes.NewReader(marker), desc); err != nil {
		return err
	}
	if err := s.content.Delete(ctx, desc.Digest); err != nil {
		return err
	}
	_, err := s.db.GarbageCollect(ctx)
	return err
}

// Use keeps the content of an image, and its forms, for owner, the id of a container, until Unuse: also after the image
// was removed, and after a restart. It is called before the forms are asked for. NotFound when a part of the image has
// gone in the meantime.
func (s *Service) Use(ctx context.Context, owner string, img Image) error {
	if owner == "" {
		return fmt.Errorf("use image %s: no owner: %w", img.ID, errdefs.ErrInvalidArgument)
	}
	if err := s.hold(s.scope(ctx), leaseUse+owner, img); err != nil {
		return fmt.Errorf("use image %s: %w", img.ID, classify(err))
	}
	return nil
}

// Unuse ends what Use began, and frees the disk where the image was removed meanwhile. It is idempotent.
func (s *Service) Unuse(ctx context.Context, owner string) error {
	if err := s.release(s.scope(ctx), leaseUse+owner); err != nil {
		return fmt.Errorf("end use of images by %s: %w", owner, classify(err))
	}
	return nil
}

// hold adds an image to a lease, which it makes where it does not exist: in one transaction, since each waits for the disk.
func (s *Service) hold(ctx context.Context, id string, img Image) error {
	return s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		l, err := s.leases.Create(ctx, leases.WithID(id))
		if errdefs.IsAlreadyExists(err) {
			l, err = leases.Lease{ID: id}, nil
		}
		if err != nil {
			return err
		}
		if err := s.leases.AddResource(ctx, l, leases.Resource{ID: img.Manifest.Digest.String(), Type: resourceContent}); err != nil {
			return err
		}
		// The manifest keeps the rest, but all of it may have been collected just before.
		parts := []digest.Digest{img.Manifest.Digest, img.ID}
		for _, layer := range img.Layers {
			parts = append(parts, layer.Blob.Digest)
		}
		for _, d := range parts {
			if _, err := s.content.Info(ctx, d); err != nil {
				return fmt.Errorf("it was removed meanwhile, pull it again: %w", err)
			}
		}
		return nil
	})
}

// release ends a lease, and collects what it alone has kept.
func (s *Service) release(ctx context.Context, id string) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	l := leases.Lease{ID: id}
	held, err := s.leases.ListResources(ctx, l)
	if errdefs.IsNotFound(err) {
		return nil
	} else if err != nil {
		return err
	}
	if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	records, err := s.images.List(ctx)
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, r := range records {
		named[r.Labels[labelManifest]] = true
	}
	if !slices.ContainsFunc(held, func(r leases.Resource) bool { return !named[r.ID] }) {
		return nil
	}
	return s.collect(ctx)
}

// Owners are those who use images, so that who lost their records can call Unuse.
func (s *Service) Owners(ctx context.Context) ([]string, error) {
	all, err := s.leases.List(s.scope(ctx))
	if err != nil {
		return nil, fmt.Errorf("list users of images: %w", classify(err))
	}
	var owners []string
	for _, l := range all {
		if owner, ok := strings.CutPrefix(l.ID, leaseUse); ok {
			owners = append(owners, owner)
		}
	}
	return owners, nil
}

// errUnknownLayers: a container uses an image, but its layers cannot be told from others.
var errUnknownLayers = errors.New("its layers are not known")

// collect removes all that nothing refers to: blobs first, then the forms of layers.
func (s *Service) collect(ctx context.Context) error {
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	s.forgetParsed(ctx)
	errs := []error{s.signatures.Collect(func(manifest digest.Digest) bool {
		_, err := s.content.Info(ctx, manifest)
		return !errdefs.IsNotFound(err)
	})}
	for _, f := range s.getForms() {
		err := f.Collect(ctx, func() (map[digest.Digest]struct{}, error) { return s.layersInUse(ctx) })
		if errors.Is(err, errUnknownLayers) {
			s.opts.Log.Warn("layers that nobody uses stay until the containers of a damaged image are gone", logfields.Error, err)
		} else if err != nil {
			errs = append(errs, fmt.Errorf("collect layers: %w", err))
		}
	}
	return errors.Join(errs...)
}

// layersInUse are the DiffIDs of all layers of images that have a name, a user or a pull.
func (s *Service) layersInUse(ctx context.Context) (map[digest.Digest]struct{}, error) {
	used := map[digest.Digest]struct{}{}
	// Pulls first: one that ends meanwhile has its name by the time the names are read.
	s.mu.Lock()
	for _, ids := range s.pending {
		for _, id := range ids {
			used[id] = struct{}{}
		}
	}
	s.mu.Unlock()
	manifests := map[digest.Digest]bool{} // true for those that somebody uses
	records, err := s.images.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range records {
		manifests[digest.Digest(r.Labels[labelManifest])] = false
	}
	all, err := s.leases.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		if !strings.HasPrefix(l.ID, leaseUse) {
			continue
		}
		held, err := s.leases.ListResources(ctx, l)
		if errdefs.IsNotFound(err) {
			continue
		} else if err != nil {
			return nil, err
		}
		for _, r := range held {
			manifests[digest.Digest(r.ID)] = true
		}
	}
	for d, inUse := range manifests {
		p, err := s.load(ctx, d)
		if err != nil && inUse {
			return nil, fmt.Errorf("manifest %s: %w: %w", d, errUnknownLayers, err)
		} else if err != nil {
			s.opts.Log.Warn("an image cannot be read; pull it again", logfields.Digest, d.String(), logfields.Error, err)
			continue
		}
		for _, id := range p.config.RootFS.DiffIDs {
			used[id] = struct{}{}
		}
	}
	return used, nil
}
