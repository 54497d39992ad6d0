package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/pistis-run/pistis/internal/image/readahead"
)

// zstdWindow bounds the memory of a decoder; compressors stay below it unless told otherwise.
const zstdWindow = 128 << 20

// OpenLayer returns a layer's uncompressed tar. Its DiffID is verified while it is read: instead of io.EOF comes a
// DataLoss error when the content is not what it should be. Nothing read before io.EOF may be relied on. The blob's own digest
// was compared when it came; it is again where the content is wrong, to tell a damaged blob from a wrong config.
func (s *Service) OpenLayer(ctx context.Context, layer Layer) (io.ReadCloser, error) {
	ctx = s.scope(ctx)
	if _, err := s.content.Info(ctx, layer.Blob.Digest); err != nil {
		return nil, fmt.Errorf("layer %s: %w", layer.Blob.Digest, classify(err))
	}
	ra, err := s.content.ReaderAt(ctx, layer.Blob)
	if errdefs.IsNotFound(err) {
		return nil, s.damaged(ctx, layer.Blob.Digest, "layer %s: its blob has gone: %s", layer.Blob.Digest, err.Error())
	} else if err != nil {
		return nil, fmt.Errorf("layer %s: %w", layer.Blob.Digest, classify(err))
	}
	if layer.Blob.Size > 0 && ra.Size() != layer.Blob.Size {
		size := ra.Size()
		return nil, errors.Join(s.damaged(ctx, layer.Blob.Digest, "layer %s: %d bytes instead of %d", layer.Blob.Digest, size, layer.Blob.Size), ra.Close())
	}
	tar, release, err := decompress(content.NewReader(ra))
	if err != nil {
		return nil, errors.Join(corrupt("layer %s: %w", layer.Blob.Digest, err), ra.Close())
	}
	ahead := readahead.New(tar)
	return &layerReader{s: s, ctx: ctx, layer: layer, blob: ra, tar: ahead, diff: layer.DiffID.Algorithm().Hash(),
		close: sync.OnceValue(func() error { ahead.Close(); release(); return ra.Close() })}, nil
}

// decompress tells by its first bytes how a stream is compressed; media types are not always right.
func decompress(r io.Reader) (_ io.Reader, release func(), err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, err
		}
		return z, func() { _ = z.Close() }, nil
	case isZstd(magic):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// isZstd knows frames and skippable frames.
func isZstd(magic []byte) bool {
	return bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}) ||
		(len(magic) == 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:], []byte{0x2a, 0x4d, 0x18}))
}

type layerReader struct {
	s     *Service
	ctx   context.Context
	layer Layer
	blob  content.ReaderAt
	tar   io.Reader
	diff  hash.Hash
	close func() error
	err   error
}

func (l *layerReader) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.tar.Read(p)
	l.diff.Write(p[:n])
	switch {
	case err == nil:
	case errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		l.err = l.verify()
	case errdefs.IsDataLoss(err):
		l.err = err
	default:
		if l.err = l.verifyBlob(); l.err == nil {
			l.err = corrupt("layer %s: %w", l.layer.Blob.Digest, err)
		}
	}
	return n, l.err
}

// verifyBlob reads the whole blob, which may take a while, and compares its digest.
func (l *layerReader) verifyBlob() error {
	sum := l.layer.Blob.Digest.Algorithm().Hash()
	if _, err := io.Copy(sum, &contextReader{l.ctx, io.NewSectionReader(l.blob, 0, l.blob.Size())}); err != nil {
		return fmt.Errorf("layer %s: %w", l.layer.Blob.Digest, classify(err))
	}
	if got := digest.NewDigest(l.layer.Blob.Digest.Algorithm(), sum); got != l.layer.Blob.Digest {
		return l.s.damaged(l.ctx, l.layer.Blob.Digest, "layer %s: the stored blob has digest %s", l.layer.Blob.Digest, got)
	}
	return nil
}

// verify returns io.EOF when the content is right.
func (l *layerReader) verify() error {
	got := digest.NewDigest(l.layer.DiffID.Algorithm(), l.diff)
	if got == l.layer.DiffID {
		return io.EOF
	}
	if err := l.verifyBlob(); err != nil {
		return err
	}
	return corrupt("layer %s: its content has digest %s, the image's config says %s", l.layer.Blob.Digest, got, l.layer.DiffID)
}

func (l *layerReader) Close() error { return l.close() }
