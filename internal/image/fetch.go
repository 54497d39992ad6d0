package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pistis-run/pistis/internal/image/registry"
)

const (
	// fetchAttempts is how often a blob is asked for without getting a single byte more.
	fetchAttempts = 4
	firstBackoff  = 200 * time.Millisecond
	copyBuffer    = 256 << 10
)

// errMismatch is content whose digest is wrong.
var errMismatch = errors.New("content does not match its digest")

// session is a pull's connection to its registry.
type session struct {
	s        *Service
	ref      string
	resolver remotes.Resolver
	fetcher  remotes.Fetcher
	progress *progress
	registry *registry.Session
}

func (s *Service) newSession(f *flight) *session {
	c := &session{s: s, ref: f.named.String(), registry: s.registry.Session(s.ctx, f.creds), progress: f.progress}
	c.resolver = docker.NewResolver(docker.ResolverOptions{
		Hosts:   c.registry.Hosts,
		Headers: http.Header{"User-Agent": []string{"pistis"}},
	})
	return c
}

func (c *session) close() { c.registry.Close() }

// resolve asks the registry what the reference means now.
func (c *session) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	name, desc, err := c.resolver.Resolve(ctx, c.ref)
	if errdefs.IsNotFound(err) {
		return ocispec.Descriptor{}, fmt.Errorf("the registry has no such image, or not for these credentials: check its name and tag: %w", err)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := desc.Digest.Validate(); err != nil {
		return ocispec.Descriptor{}, corrupt("the registry names an invalid digest: %w", err)
	}
	if c.fetcher, err = c.resolver.Fetcher(ctx, name); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}, nil
}

// fetch makes a blob available: from the store, from where an earlier attempt ended, or from the registry. Only one
// pull at a time works on a blob.
func (c *session) fetch(ctx context.Context, desc ocispec.Descriptor) error {
	c.progress.expect(false, desc)
	idle := c.progress.wait()
	unlock, err := c.s.blobs.lock(ctx, desc.Digest)
	idle()
	if err != nil {
		return err
	}
	defer unlock()
	defer c.progress.work()()
	backoff, fruitless, fresh := firstBackoff, 0, false
	for {
		start, end, err := c.fetchOnce(ctx, desc)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errMismatch):
			// What a crash left may be damaged, or the registry cannot go on in the middle. What came whole from the
			// registry is the registry's fault.
			if start == 0 || fresh {
				return corrupt("%w; the registry or something on the way to it is broken", err)
			}
			fresh = true
			continue
		case !transient(err):
			return err
		}
		if fruitless++; end > start {
			backoff, fruitless = firstBackoff, 0
		}
		if fruitless >= fetchAttempts {
			return err
		}
		select {
		case <-time.After(backoff):
			backoff *= 2
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fetchOnce goes on with a blob from start, and got as far as end.
func (c *session) fetchOnce(ctx context.Context, desc ocispec.Descriptor) (start, end int64, err error) {
	ingest := "fetch-" + desc.Digest.String()
	w, err := c.s.content.Writer(ctx, content.WithRef(ingest), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		c.progress.at(desc.Digest, desc.Size)
		return 0, desc.Size, nil
	} else if err != nil {
		return 0, 0, err
	}
	defer func() { err = c.finish(ctx, w, ingest, err) }()
	status, err := w.Status()
	if err != nil {
		return 0, 0, err
	}
	if start = status.Offset; start > desc.Size {
		if start, err = 0, w.Truncate(0); err != nil {
			return 0, 0, err
		}
	}
	if end, err = c.receive(ctx, w, desc, start); err != nil {
		if noRange(err) && start > 0 {
			err = fmt.Errorf("%w: %w", errMismatch, err)
		}
		return start, end, err
	}
	if got := w.Digest(); got.Algorithm() == desc.Digest.Algorithm() && got != desc.Digest {
		return start, end, fmt.Errorf("%w: got %s", errMismatch, got)
	}
	err = w.Commit(ctx, desc.Size, desc.Digest)
	if errdefs.IsAlreadyExists(err) {
		return start, end, nil
	} else if errdefs.IsFailedPrecondition(err) {
		return start, end, fmt.Errorf("%w: %s", errMismatch, err.Error())
	}
	return start, end, err
}

// finish closes a writer. What cannot be continued is dropped, with its space.
func (c *session) finish(ctx context.Context, w content.Writer, ingest string, failure error) error {
	hopeless := errors.Is(failure, errMismatch) || errors.Is(failure, syscall.ENOSPC) || errors.Is(failure, syscall.EDQUOT)
	if hopeless {
		_ = w.Truncate(0) // gives the space back first: aborting writes to the database
	}
	if err := w.Close(); err != nil && failure == nil {
		return err
	}
	if hopeless {
		ctx, cancel := detached(ctx)
		defer cancel()
		if err := c.s.content.Abort(ctx, ingest); err != nil && !errdefs.IsNotFound(err) {
			return errors.Join(failure, err)
		}
	}
	return failure
}

// receive appends to w what is missing from offset on.
func (c *session) receive(ctx context.Context, w io.Writer, desc ocispec.Descriptor, offset int64) (int64, error) {
	c.progress.at(desc.Digest, offset)
	if offset == desc.Size {
		return offset, nil
	}
	var body io.ReadCloser
	if int64(len(desc.Data)) == desc.Size {
		body = io.NopCloser(bytes.NewReader(desc.Data[offset:]))
	} else {
		rc, err := c.fetcher.Fetch(ctx, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
		if err != nil {
			return offset, err
		}
		body = rc
		if offset > 0 {
			seeker, ok := rc.(io.Seeker)
			if !ok {
				return offset, errors.Join(fmt.Errorf("%T cannot seek: %w", rc, errdefs.ErrInternal), rc.Close())
			}
			if _, err := seeker.Seek(offset, io.SeekStart); err != nil {
				return offset, errors.Join(err, rc.Close())
			}
		}
	}
	defer body.Close()
	counted := &countingWriter{w: w, n: offset, report: func(n int64) { c.progress.at(desc.Digest, n) }}
	// The wrapped reader hides WriterTo and the like, so that the buffer is used and ctx is looked at.
	_, err := io.CopyBuffer(counted, io.LimitReader(&bodyReader{ctx, body}, desc.Size-offset), make([]byte, copyBuffer))
	if err == nil && counted.n < desc.Size {
		err = &bodyError{io.ErrUnexpectedEOF}
	}
	return counted.n, err
}

type countingWriter struct {
	w      io.Writer
	n      int64
	report func(int64)
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	c.report(c.n)
	return n, err
}

// bodyReader marks its errors as the network's, to tell them from those of the disk.
type bodyReader struct {
	ctx context.Context
	r   io.Reader
}

func (b *bodyReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &bodyError{err}
	}
	return n, err
}
