package cri

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc"

	pistis "github.com/pistis-run/pistis/api/pistis/v1"
	"github.com/pistis-run/pistis/internal/image"
)

// chunkSize is how much of an archive goes into one message; maxChunk is what is taken.
const (
	chunkSize = 256 << 10
	maxChunk  = 1 << 20
)

// imageArchives moves images in and out as archives.
type imageArchives interface {
	Pull(ctx context.Context, req image.PullRequest) (image.Image, error)
	Import(ctx context.Context, archive io.Reader) ([]image.Image, error)
	Export(ctx context.Context, archive io.Writer, refs ...string) error
}

// Operator is the service api/pistis/v1, beside CRI.
type Operator struct {
	pistis.UnimplementedPistisServer
	images imageArchives
}

// NewOperator serves archives and pulls of images.
func NewOperator(images imageArchives) *Operator { return &Operator{images: images} }

// Register adds the service to g, which should have been made with the options of Interceptors.
func (o *Operator) Register(g *grpc.Server) { pistis.RegisterPistisServer(g, o) }

// Pull pulls an image and sends its progress. The last message has the image's id.
func (o *Operator) Pull(req *pistis.PullRequest, stream grpc.ServerStreamingServer[pistis.PullProgress]) error {
	ctx := stream.Context()
	if req.Image == "" {
		return fmt.Errorf("pull: %w", invalid("the request names no image"))
	}
	var credentials *image.Auth
	if req.Username != "" || req.Password != "" {
		credentials = &image.Auth{Username: req.Username, Password: req.Password}
	}
	// A stream has one sender at a time: the newest progress waits for it, and an older one that was not sent yet is
	// dropped.
	progress := make(chan image.Progress, 1)
	type result struct {
		image image.Image
		err   error
	}
	pulled := make(chan result, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the pull, which ends with ctx; its result is waited for below
		img, err := o.images.Pull(ctx, image.PullRequest{Ref: req.Image, Auth: credentials, Progress: func(p image.Progress) {
			select {
			case <-progress:
			default:
			}
			select {
			case progress <- p:
			default:
			}
		}})
		pulled <- result{img, err}
	}()
	for {
		select {
		case p := <-progress:
			if err := stream.Send(&pistis.PullProgress{Status: p.Status, Offset: p.Offset, Total: p.Total}); err != nil {
				cancel()
				<-pulled
				return err
			}
		case r := <-pulled:
			if r.err != nil {
				return fmt.Errorf("pull image %q: %w", req.Image, r.err)
			}
			return stream.Send(&pistis.PullProgress{Status: "done", Offset: r.image.Size, Total: r.image.Size, Id: r.image.ID.String()})
		}
	}
}

// Import reads an archive and answers with the images that were in it.
func (o *Operator) Import(stream grpc.ClientStreamingServer[pistis.Chunk, pistis.ImportResponse]) error {
	list, err := o.images.Import(stream.Context(), &chunkReader{recv: stream.Recv})
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	resp := &pistis.ImportResponse{}
	for _, img := range list {
		resp.Images = append(resp.Images, &pistis.ImportedImage{Id: img.ID.String(), Tags: img.Tags})
	}
	return stream.SendAndClose(resp)
}

// chunkReader is the bytes of a stream of chunks.
type chunkReader struct {
	recv func() (*pistis.Chunk, error)
	rest []byte
	err  error
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		chunk, err := r.recv()
		if err == nil && len(chunk.Data) > maxChunk {
			err = invalid("a chunk has %d bytes, at most %d are allowed", len(chunk.Data), maxChunk)
		}
		r.rest, r.err = chunk.GetData(), err
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Export sends images as one archive.
func (o *Operator) Export(req *pistis.ExportRequest, stream grpc.ServerStreamingServer[pistis.Chunk]) error {
	if len(req.Images) == 0 {
		return fmt.Errorf("export: %w", invalid("the request names no images"))
	}
	buffered := bufio.NewWriterSize(chunkWriter(stream.Send), chunkSize)
	err := o.images.Export(stream.Context(), buffered, req.Images...)
	if err = errors.Join(err, buffered.Flush()); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// chunkWriter sends what it is given in chunks.
type chunkWriter func(*pistis.Chunk) error

func (w chunkWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), chunkSize)
		if err := w(&pistis.Chunk{Data: p[:n]}); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}
