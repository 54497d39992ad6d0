package image

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/pistis-run/pistis/internal/logfields"
)

// guarded runs fn, which opens and reads the database at path. One that was cut or overwritten makes its reader panic, or
// touch memory behind the file's end.
func guarded(path string, fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = damagedDB(path, fmt.Errorf("%v", p))
		}
	}()
	return fn()
}

func damagedDB(path string, cause error) error {
	return corrupt("%s is damaged (%w): put it back from a backup, or stop all pods and images with `pistisd wipe --yes --images` and pull anew", path, cause)
}

// readAll touches all of a database.
func readAll(db *bolt.DB) error {
	var walk func(b *bolt.Bucket) error
	walk = func(b *bolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if v == nil {
				return walk(b.Bucket(k))
			}
			return nil
		})
	}
	return db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return walk(b) })
	})
}

// losing is the key of what a context of lose brings along: the blobs that are lost, to which what is found damaged on the way
// is added.
type losing struct{}

// lose forgets blobs that are not what they should be, and takes the names off the images that need them: they count as
// not there, so that who wants one pulls it anew. Containers that run from such an image go on.
func (s *Service) lose(ctx context.Context, lost ...digest.Digest) error {
	gone := map[digest.Digest]bool{}
	for _, d := range lost {
		gone[d] = true
	}
	records, err := s.images.List(ctx)
	if err != nil {
		return err
	}
	var doomed []images.Image
	// Anew whenever more has turned out to be lost.
	for known := 0; known != len(gone); {
		known, doomed = len(gone), nil
		for _, r := range records {
			if s.needs(context.WithValue(ctx, losing{}, gone), r, gone) {
				doomed = append(doomed, r)
			}
		}
	}
	s.mu.Lock()
	for d := range gone {
		delete(s.parsed, d)
	}
	s.mu.Unlock()
	var names []string
	for _, r := range doomed {
		s.opts.Log.Warn("a part of an image is damaged; it has to be pulled again", logfields.Image, r.Name)
		names = append(names, r.Name)
		if err := s.keepForPull(ctx, r, gone); err != nil {
			return err
		}
	}
	// The names first: a crash in between leaves blobs that the next start finds.
	err = s.db.Update(func(tx *bolt.Tx) error {
		ctx := boltutil.WithTransaction(ctx, tx)
		for _, name := range names {
			if err := s.images.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for d := range gone {
		s.opts.Log.Warn("a blob of the image store is damaged or gone, it is forgotten", logfields.Digest, d.String())
		if err := s.content.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	_, err = s.db.GarbageCollect(ctx)
	return err
}

// keepForPull keeps what is whole of an image for a while, as what an interrupted pull leaves.
func (s *Service) keepForPull(ctx context.Context, r images.Image, gone map[digest.Digest]bool) error {
	manifest := r.Labels[labelManifest]
	if gone[digest.Digest(manifest)] {
		return nil
	}
	l, err := s.leases.Create(ctx, leases.WithID(leasePull+uuid.NewString()), leases.WithLabel(labelRef, r.Name))
	if err != nil {
		return err
	}
	return s.leases.AddResource(ctx, l, leases.Resource{ID: manifest, Type: resourceContent})
}

// needs tells whether an image is of no use without these blobs.
func (s *Service) needs(ctx context.Context, r images.Image, gone map[digest.Digest]bool) bool {
	manifest := digest.Digest(r.Labels[labelManifest])
	if gone[r.Target.Digest] || gone[manifest] || gone[digest.Digest(r.Labels[labelConfig])] {
		return true
	}
	p, err := s.load(ctx, manifest)
	if err != nil {
		return true
	}
	for _, l := range p.manifest.Layers {
		if gone[l.Digest] {
			return true
		}
	}
	return false
}

// damaged is lose for who finds a blob damaged, and returns the error for it.
func (s *Service) damaged(ctx context.Context, d digest.Digest, format string, args ...any) error {
	ctx, cancel := detached(s.scope(ctx))
	defer cancel()
	err := corrupt(format+"; pull the image again", args...)
	if gone, ok := ctx.Value(losing{}).(map[digest.Digest]bool); ok {
		gone[d] = true // lose itself has found it
		return err
	}
	return errors.Join(err, s.lose(ctx, d))
}

// misses tells whether a blob of an image is not in the store.
func (s *Service) misses(ctx context.Context, p parsedManifest) bool {
	for _, l := range p.manifest.Layers {
		if _, err := s.content.Info(ctx, l.Digest); errdefs.IsNotFound(err) {
			return true
		}
	}
	return false
}
