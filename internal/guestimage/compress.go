package guestimage

import (
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Compression of an initrd. The kernel must have the matching CONFIG_RD_….
type Compression string

const (
	Zstd Compression = "zstd"
	Gzip Compression = "gzip"
	LZ4  Compression = "lz4"
	None Compression = "none"
)

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(4<<20))
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.BestCompression)
	case LZ4:
		// The kernel knows the legacy frame only.
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.LegacyOption(true), lz4.CompressionLevelOption(lz4.Level9))
	case None:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", c)
}
