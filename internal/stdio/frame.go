package stdio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// FrameKind says what a frame carries. The values are those of api/shim/v1.
type FrameKind byte

// Kinds of frames.
const (
	KindStdin FrameKind = iota
	KindStdout
	KindStderr
	// KindCloseStdin has no payload: the client will send no more input.
	KindCloseStdin
	// KindEOF has no payload: all output was sent.
	KindEOF
	// KindError has a message as payload and is the last frame.
	KindError
)

const (
	// MaxFrame bounds a frame's payload in bytes.
	MaxFrame = 64 << 10

	frameHeader = 5
)

// FrameReader reads the frames of an attach stream.
type FrameReader struct {
	r   io.Reader
	buf []byte
	hdr [frameHeader]byte
}

// NewFrameReader returns a reader of r, which should be buffered where frames are small.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: r} }

// Next returns the next frame; the payload is valid until the call after it. io.EOF only between frames.
func (f *FrameReader) Next() (FrameKind, []byte, error) {
	if _, err := io.ReadFull(f.r, f.hdr[:1]); err != nil {
		return 0, nil, err
	}
	if _, err := io.ReadFull(f.r, f.hdr[1:]); err != nil {
		return 0, nil, unexpected(err)
	}
	kind, n := FrameKind(f.hdr[0]), binary.BigEndian.Uint32(f.hdr[1:])
	if kind > KindError {
		return 0, nil, fmt.Errorf("attach stream: frame of unknown kind %d: %w", kind, errdefs.ErrInvalidArgument)
	}
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("attach stream: frame of %d bytes exceeds %d: %w", n, MaxFrame, errdefs.ErrInvalidArgument)
	}
	if int(n) > cap(f.buf) {
		f.buf = make([]byte, n)
	}
	payload := f.buf[:n]
	if _, err := io.ReadFull(f.r, payload); err != nil {
		return 0, nil, unexpected(err)
	}
	return kind, payload, nil
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// AppendFrame appends one frame. payload must not exceed MaxFrame.
func AppendFrame(b []byte, kind FrameKind, payload []byte) []byte {
	b = append(b, byte(kind))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// WriteFrames writes payload as one or more frames, each with one Write.
func WriteFrames(w io.Writer, kind FrameKind, payload []byte) error {
	for {
		part := payload[:min(len(payload), MaxFrame)]
		payload = payload[len(part):]
		if _, err := w.Write(AppendFrame(make([]byte, 0, frameHeader+len(part)), kind, part)); err != nil {
			return err
		}
		if len(payload) == 0 {
			return nil
		}
	}
}

// FrameWriter writes everything as frames of one kind.
type FrameWriter struct {
	W    io.Writer
	Kind FrameKind
}

// Write writes p as frames.
func (f FrameWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := WriteFrames(f.W, f.Kind, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
