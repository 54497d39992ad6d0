package stdio

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/containerd/errdefs"
)

// copyBuffer is the size of one read of a client's input, or of the other side's frames.
const copyBuffer = 32 << 10

// Streams are a client's ends; nil means not wanted.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Join carries a client's streams over an attach stream, which it closes, until the other side says that the output has
// ended, or ctx ends. It does not wait for a Read of Stdin that is under way: the caller closes its reader.
func Join(ctx context.Context, conn net.Conn, streams Streams) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if streams.Stdin != nil {
		go sendInput(conn, streams.Stdin) // ends with its reader or, at the next read, with the connection
	}
	err := receiveOutput(conn, streams)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// sendInput sends input as frames until it ends. What goes wrong shows on the output side too.
func sendInput(conn net.Conn, stdin io.Reader) {
	w := FrameWriter{W: conn, Kind: KindStdin}
	if _, err := io.CopyBuffer(w, struct{ io.Reader }{stdin}, make([]byte, copyBuffer)); err == nil {
		WriteFrames(conn, KindCloseStdin, nil)
	}
}

func receiveOutput(conn net.Conn, streams Streams) error {
	frames := NewFrameReader(bufio.NewReaderSize(conn, copyBuffer))
	for {
		kind, payload, err := frames.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("who carried the output has gone: %w", errdefs.ErrUnavailable)
		} else if err != nil {
			return err
		}
		var w io.Writer
		switch kind {
		case KindStdout:
			w = streams.Stdout
		case KindStderr:
			w = streams.Stderr
		case KindEOF:
			return nil
		case KindError:
			return fmt.Errorf("%.1000s: %w", payload, errdefs.ErrAborted)
		default:
			return fmt.Errorf("output came in a frame of kind %d: %w", kind, errdefs.ErrInternal)
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(payload); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
}

// input is what a process reads.
type input interface {
	WriteStdin(p []byte) error
	CloseStdin()
}

// ReadInput gives a client's frames to a process, on the other side of Join, until the client has gone or sends what only
// the process's side sends. wanted: the client joined with input; closing: it may end the input of the process.
func ReadInput(client io.Reader, in input, wanted, closing bool) {
	frames := NewFrameReader(client)
	for {
		kind, payload, err := frames.Next()
		if err != nil {
			return
		}
		switch {
		case kind == KindStdin && wanted:
			// A process that does not read any more is no reason to end its output.
			_ = in.WriteStdin(payload)
		case kind == KindCloseStdin && wanted && closing:
			in.CloseStdin()
		case kind == KindStdin, kind == KindCloseStdin:
		default:
			return
		}
	}
}
