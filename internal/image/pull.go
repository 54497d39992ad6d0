package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/pistis-run/pistis/internal/failpoint"
	"github.com/pistis-run/pistis/internal/image/registry"
	"github.com/pistis-run/pistis/internal/logfields"
)

const (
	progressInterval = 250 * time.Millisecond
	progressLog      = 10 * time.Second
)

// flightKey tells pulls apart that must not share their work: other credentials may not see the same image.
type flightKey struct {
	ref  string
	auth Auth
}

// flight is one pull, for all that asked for it.
type flight struct {
	key      flightKey
	named    reference.Named
	creds    registry.Credentials
	progress *progress
	cancel   context.CancelCauseFunc
	waiters  int // under Service.mu

	done chan struct{}
	// After done.
	image Image
	err   error
}

// Pull makes the image that req.Ref names available and returns it. It asks the registry in any case, and downloads
// what is not there yet. Concurrent pulls of one reference share the work; the one whose ctx ends leaves the others
// undisturbed.
//
// Errors do not say what was pulled: InvalidArgument for a malformed reference or credentials, NotFound, Unauthenticated, PermissionDenied,
// PermissionDenied with ErrSignature for an image that the signature policy does not allow,
// FailedPrecondition for an image that this node cannot run, DataLoss where content is not what its digest says,
// ResourceExhausted for a full disk, Unavailable for a registry that does not answer, DeadlineExceeded for one that
// stops answering.
func (s *Service) Pull(ctx context.Context, req PullRequest) (Image, error) {
	f, err := s.join(req)
	if err != nil {
		return Image{}, err
	}
	defer s.leave(f)
	report := func() {
		if req.Progress != nil {
			req.Progress(f.progress.snapshot())
		}
	}
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case <-f.done:
			report()
			return f.image, f.err
		case <-ctx.Done():
			report()
			return Image{}, ctx.Err()
		case <-tick.C:
			report()
		}
	}
}

// join enters the flight for a request, starting it where there is none.
func (s *Service) join(req PullRequest) (*flight, error) {
	named, err := parse(req.Ref)
	if err != nil {
		return nil, err
	}
	key := flightKey{ref: named.String()}
	if req.Auth != nil {
		key.auth = *req.Auth
	}
	creds, err := registry.ParseAuth(key.auth)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", named, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, fmt.Errorf("%s: the image store is closing: %w", named, errdefs.ErrUnavailable)
	}
	if f := s.flights[key]; f != nil {
		f.waiters++
		return f, nil
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	f := &flight{key: key, named: named, creds: creds, progress: newProgress(key.ref), cancel: cancel, waiters: 1, done: make(chan struct{})}
	s.flights[key] = f
	s.wg.Go(func() { s.fly(ctx, f) })
	return f, nil
}

// leave is the end of a caller's interest. The last one ends the flight.
func (s *Service) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel(context.Canceled)
		if s.flights[f.key] == f {
			delete(s.flights, f.key)
		}
	}
}

// fly runs a flight to its end.
func (s *Service) fly(ctx context.Context, f *flight) {
	defer f.cancel(nil)
	var watch errgroup.Group
	stop := make(chan struct{})
	watch.Go(func() error { s.watch(f, stop); return nil })
	start := time.Now()
	img, err := s.pull(ctx, f)
	s.settle(f)
	close(stop)
	_ = watch.Wait()
	if err != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			err = fmt.Errorf("the registry sent nothing for %s: %w", s.opts.PullTimeout, errStalled)
		}
		err = classify(err)
	} else {
		f.progress.set(StatusDone)
		s.opts.Log.Info("image pulled", logfields.Image, f.named.String(), logfields.ID, img.ID.String(), logfields.Bytes, img.Size, logfields.Duration, time.Since(start))
	}
	s.mu.Lock()
	if s.flights[f.key] == f {
		delete(s.flights, f.key)
	}
	s.mu.Unlock()
	if s.opts.Pulled != nil {
		s.opts.Pulled(f.progress.snapshot().Offset, time.Since(start), err)
	}
	f.image, f.err = img, err
	close(f.done)
}

// watch ends a flight that makes no progress, and logs the progress of one that does.
func (s *Service) watch(f *flight, stop <-chan struct{}) {
	tick := time.NewTicker(min(s.opts.PullTimeout/4, time.Second))
	defer tick.Stop()
	logged := time.Now()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		if f.progress.idle() > s.opts.PullTimeout {
			f.cancel(errStalled)
		}
		if time.Since(logged) >= progressLog {
			logged = time.Now()
			p := f.progress.snapshot()
			s.opts.Log.Info("pulling image", logfields.Image, p.Ref, logfields.Status, p.Status, logfields.Offset, p.Offset, logfields.Total, p.Total)
		}
	}
}

// pull does the work of a flight: resolve, download, make the forms, and last give it its names.
func (s *Service) pull(ctx context.Context, f *flight) (_ Image, err error) {
	s.opts.Log.Info("pulling image", logfields.Image, f.named.String())
	ctx, release, err := s.lease(ctx, leasePull, f.key.ref)
	if err != nil {
		return Image{}, err
	}
	defer func() { release(ctx, err) }()

	requirements, err := s.requirements(f.named)
	if err != nil {
		return Image{}, err
	}
	session := s.newSession(f)
	defer session.close()
	target, err := session.resolve(ctx)
	if err != nil {
		return Image{}, err
	}
	f.progress.set(StatusDownloading)
	p, err := s.resolve(ctx, target, session.fetch)
	if err != nil {
		return Image{}, err
	}
	signed, err := session.verify(ctx, f.named, requirements, target.Digest, p.desc.Digest)
	if err == nil {
		err = s.signatures.Add(p.desc.Digest, signed)
	}
	if err != nil {
		return Image{}, err
	}
	names := []string{digestName(f.named, target.Digest.String())}
	if _, ok := f.named.(reference.Tagged); ok {
		names = append(names, f.named.String())
	}
	r := registration{names: names, target: target, image: p}
	if err := session.complete(ctx, f, r); err != nil {
		return Image{}, err
	}
	if err := failpoint.Hit(ctx, "image.prepared"); err != nil {
		return Image{}, err
	}
	if err := s.register(ctx, r); err != nil {
		return Image{}, err
	}
	if err := failpoint.Hit(ctx, "image.registered"); err != nil {
		return Image{}, err
	}
	return s.find(ctx, p.manifest.Config.Digest)
}

// complete makes all that an image lacks but its names. A blob that was there already may turn out to be damaged when it
// is read: it is downloaded once more then.
func (c *session) complete(ctx context.Context, f *flight, r registration) error {
	for again := false; ; again = true {
		err := c.bring(ctx, f, r)
		if err == nil || again || !errdefs.IsDataLoss(err) || !c.s.misses(ctx, r.image) {
			return err
		}
	}
}

// bring downloads the layers, and makes the form of each as soon as those below it have come too.
func (c *session) bring(ctx context.Context, f *flight, r registration) error {
	f.progress.set(StatusDownloading)
	come := map[digest.Digest]chan struct{}{}
	for _, l := range r.image.manifest.Layers {
		come[l.Digest] = make(chan struct{})
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := c.fetchLayers(ctx, r.image, come); err != nil {
			return err
		}
		if err := failpoint.Hit(ctx, "image.downloaded"); err != nil {
			return err
		}
		f.progress.set(StatusConverting)
		return c.s.label(ctx, r.image)
	})
	group.Go(func() error { return c.s.prepare(ctx, f, r, come) })
	return group.Wait()
}

// prepare makes the form of an image's layers. come has channels that are closed when a blob is there; all are where it is nil.
func (s *Service) prepare(ctx context.Context, f *flight, r registration, come map[digest.Digest]chan struct{}) error {
	forms := s.getForms()
	if len(forms) == 0 {
		return nil
	}
	s.mu.Lock()
	s.pending[f] = append(s.pending[f], r.image.config.RootFS.DiffIDs...)
	s.mu.Unlock()
	group, ctx := errgroup.WithContext(ctx)
	layers := r.image.layers()
	for i, l := range layers {
		if here := come[l.Blob.Digest]; here != nil {
			select {
			case <-here:
			case <-ctx.Done():
				return cmp.Or(group.Wait(), ctx.Err()) // what failed has ended ctx, and is not a cancellation
			}
		}
		group.Go(forms[0].Begin(ctx, layers[:i+1]))
	}
	return group.Wait()
}

// settle ends what prepare holds.
func (s *Service) settle(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, f)
}

// fetchLayers downloads what is missing of the layers, some at a time, the lowest first, and tells which have come.
func (c *session) fetchLayers(ctx context.Context, p parsedManifest, come map[digest.Digest]chan struct{}) error {
	blobs := []ocispec.Descriptor{p.desc, p.manifest.Config}
	seen := map[digest.Digest]bool{}
	var layers []ocispec.Descriptor
	for _, l := range p.manifest.Layers {
		if !seen[l.Digest] {
			seen[l.Digest] = true
			layers = append(layers, l)
		}
	}
	c.progress.expect(true, append(blobs, layers...)...)
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range layers {
		idle := c.progress.wait()
		err := c.s.downloads.Acquire(ctx, 1)
		idle()
		if err != nil {
			return cmp.Or(group.Wait(), err) // as in prepare
		}
		group.Go(func() error {
			defer c.s.downloads.Release(1)
			if err := c.fetch(ctx, l); err != nil {
				return fmt.Errorf("layer %s: %w", l.Digest, err)
			}
			close(come[l.Digest])
			return nil
		})
	}
	return group.Wait()
}
