package main

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/stream"
)

// What is in the image, as fsload wants it.
const (
	smallFiles = 10000
	firstFiles = 200
	largeFiles = 8
	largeSize  = 16 << 20
	bulkSize   = 64 << 20
	perLayer   = 4 // bulk files
)

// file is an entry of a layer: a name and how many bytes, or the program from.
type file struct {
	name string
	size int64
	from string
}

// layers lists the files of the image's layers: the program fsload, the files that are worked on, and the rest.
func layers(program string, mib int) [][]file {
	work := []file{}
	for i := range smallFiles {
		work = append(work, file{name: fmt.Sprintf("image/small/%d/%d", i/100, i), size: 1 << 10})
	}
	for i := range firstFiles {
		work = append(work, file{name: fmt.Sprintf("image/first/%d", i), size: 4 << 10})
	}
	for i := range largeFiles {
		work = append(work, file{name: fmt.Sprintf("image/large/%d", i), size: largeSize})
	}
	all := [][]file{{{name: "fsload", from: program}}, work}
	rest := max(1, (int64(mib)<<20-largeFiles*largeSize)/bulkSize)
	for i := range rest {
		if i%perLayer == 0 {
			all = append(all, nil)
		}
		last := &all[len(all)-1]
		*last = append(*last, file{name: fmt.Sprintf("image/bulk/%d", i), size: bulkSize})
	}
	return all
}

// push makes the image while it is uploaded: it is on no disk but the registry's.
func push(ctx context.Context, ref, program string, mib int) error {
	img, err := mutate.Config(empty.Image, v1.Config{Cmd: []string{"/fsload", "-stay"}})
	if err != nil {
		return err
	}
	if img, err = mutate.ConfigFile(img, platform(img)); err != nil {
		return err
	}
	for i, files := range layers(program, mib) {
		r, w := io.Pipe()
		go func() { _ = w.CloseWithError(writeLayer(w, uint64(i), files)) }() // ends with the reader
		img, err = mutate.AppendLayers(img, stream.NewLayer(r, stream.WithCompressionLevel(gzip.BestSpeed)))
		if err != nil {
			return errors.Join(err, r.Close())
		}
	}
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(to, img, remote.WithContext(ctx), remote.WithJobs(1))
}

func platform(img v1.Image) *v1.ConfigFile {
	config, err := img.ConfigFile()
	if err != nil {
		config = &v1.ConfigFile{}
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	return config
}

// writeLayer writes a layer's tar archive. Half of what is in a file compresses to nothing.
func writeLayer(w io.Writer, seed uint64, files []file) error {
	random := rand.NewChaCha8([32]byte{byte(seed)})
	block := make([]byte, 4<<10)
	archive := tar.NewWriter(w)
	for _, f := range files {
		if f.from != "" {
			data, err := os.ReadFile(f.from)
			if err != nil {
				return err
			}
			err = archive.WriteHeader(&tar.Header{Name: f.name, Mode: 0o755, Size: int64(len(data))})
			if _, writeErr := archive.Write(data); errors.Join(err, writeErr) != nil {
				return errors.Join(err, writeErr)
			}
			continue
		}
		if err := archive.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: f.size}); err != nil {
			return err
		}
		for left := f.size; left > 0; left -= int64(len(block)) {
			if _, err := random.Read(block[:len(block)/2]); err != nil {
				return err
			}
			if _, err := archive.Write(block[:min(left, int64(len(block)))]); err != nil {
				return err
			}
		}
	}
	return archive.Close()
}
