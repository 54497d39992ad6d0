package images

import (
	"archive/tar"
	"bytes"
	"io"
	"path"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is the time of all files: builds are reproducible.
var epoch = time.Unix(1700000000, 0).UTC()

// layer is a tar archive in the making.
type layer struct {
	headers []*tar.Header
	data    [][]byte
	names   map[string]bool
}

func newLayer() *layer { return &layer{names: map[string]bool{}} }

func (l *layer) has(name string) bool { return l.names[clean(name)] }

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// raw adds an entry just as the header says, however odd.
func (l *layer) raw(h tar.Header, data []byte) {
	h.Size = int64(len(data))
	if h.ModTime.IsZero() {
		h.ModTime = epoch
	}
	l.names[clean(h.Name)] = true
	l.headers = append(l.headers, &h)
	l.data = append(l.data, data)
}

// parents adds the directories above a name that are not there yet.
func (l *layer) parents(name string) {
	dir := path.Dir(name)
	if dir == "." || l.has(dir) {
		return
	}
	l.parents(dir)
	l.raw(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, nil)
}

func (l *layer) add(h tar.Header, data []byte) {
	h.Name = clean(h.Name)
	if h.Name == "" || h.Typeflag == tar.TypeDir && l.has(h.Name) {
		return
	}
	l.parents(h.Name)
	if h.Typeflag == tar.TypeDir {
		h.Name += "/"
	}
	l.raw(h, data)
}

func (l *layer) dir(name string, mode int64) {
	l.add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil)
}
func (l *layer) file(name string, mode int64, data []byte) {
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, data)
}
func (l *layer) text(name, content string) { l.file(name, 0o644, []byte(content)) }
func (l *layer) symlink(name, target string) {
	l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
}

// hardlink makes name another name of target, which the layer must have.
func (l *layer) hardlink(name, target string) {
	l.add(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: clean(target), Mode: 0o755}, nil)
}

// whiteout deletes a name of the layers below.
func (l *layer) whiteout(name string) {
	l.text(path.Join(path.Dir(name), ".wh."+path.Base(name)), "")
}

// opaque hides what the layers below have in a directory.
func (l *layer) opaque(dir string) { l.text(path.Join(dir, ".wh..wh..opq"), "") }

func (l *layer) tar() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i, h := range l.headers {
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(l.data[i]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// build makes an image layer of the archive.
func (l *layer) build(media types.MediaType) (v1.Layer, error) {
	data, err := l.tar()
	if err != nil {
		return nil, err
	}
	options := []tarball.LayerOption{tarball.WithMediaType(media), tarball.WithCompressedCaching}
	switch media {
	case types.OCILayerZStd:
		options = append(options, tarball.WithCompression(compression.ZStd))
	case types.OCIUncompressedLayer:
		options = append(options, tarball.WithCompression(compression.None))
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}, options...)
}
