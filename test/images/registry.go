package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// Options for Serve.
type Options struct {
	// Listen is the address; empty is a free port of 127.0.0.1.
	Listen string
	// Cache is where built images are kept; empty is .cache/images in the source tree.
	Cache string
	// Groups that are served; none means an empty registry, to push to.
	Groups []Group
	// Wrap, where set, sits before the registry: to ask for credentials, to be slow, to fail.
	Wrap func(http.Handler) http.Handler
	// Progress, where set, is called with a line for every step that takes time.
	Progress func(string)
}

// Registry is a plain-HTTP registry on this host. Its methods may be called from any goroutine.
type Registry struct {
	// Address is host:port.
	Address string

	refs     []string
	stores   []*store
	pushed   string // directory of blobs that were pushed
	handler  http.Handler
	server   *http.Server
	finished chan error
}

// Start serves groups of images for one test, as [Serve] does, and ends with the test.
func Start(t testing.TB, groups ...Group) *Registry {
	t.Helper()
	return StartWith(t, Options{Groups: groups})
}

// StartWith is Start with options.
func StartWith(t testing.TB, o Options) *Registry {
	t.Helper()
	if o.Progress == nil {
		o.Progress = func(line string) { t.Log(line) }
	}
	r, err := Serve(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Serve builds what is not in the cache and serves it until Close. ctx bounds the building alone.
func Serve(ctx context.Context, o Options) (*Registry, error) {
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Cache == "" {
		module, err := moduleRoot()
		if err != nil {
			return nil, err
		}
		o.Cache = filepath.Join(module, ".cache", "images")
	}
	r := &Registry{finished: make(chan error, 1)}
	for _, g := range o.Groups {
		s, err := open(ctx, o.Cache, g, o.Progress)
		if err != nil {
			return nil, err
		}
		r.stores = append(r.stores, s)
	}
	pushed, err := os.MkdirTemp("", "pistis-registry-")
	if err != nil {
		return nil, err
	}
	r.pushed = pushed
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(pushed)))
	for _, s := range r.stores {
		if err := s.announce(inner); err != nil {
			return nil, errors.Join(err, os.RemoveAll(pushed))
		}
		r.refs = slices.AppendSeq(r.refs, maps.Keys(s.refs))
	}
	slices.Sort(r.refs)
	listener, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(pushed))
	}
	r.Address = listener.Addr().String()
	r.handler = r.blobs(inner)
	if o.Wrap != nil {
		r.handler = o.Wrap(r.handler)
	}
	r.server = &http.Server{Handler: r.handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { r.finished <- r.server.Serve(listener) }()
	return r, nil
}

// Close ends the registry and its connections, and removes what was pushed.
func (r *Registry) Close() error {
	err := r.server.Close()
	if serr := <-r.finished; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return errors.Join(err, os.RemoveAll(r.pushed))
}

// Ref is the full reference of an image, as pistis/test:latest, in this registry.
func (r *Registry) Ref(name string) string { return r.Address + "/" + name }

// Refs are the images that are served from the start, without the registry's address.
func (r *Registry) Refs() []string { return slices.Clone(r.refs) }

// Digest of an image that is served from the start, as sha256:…; empty for any other.
func (r *Registry) Digest(name string) string {
	for _, s := range r.stores {
		if d, ok := s.refs[name]; ok {
			return d.Digest.String()
		}
	}
	return ""
}

// blobs serves blobs with ranges, and spoiled where asked for; all else is inner's.
func (r *Registry) blobs(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, digest, isBlob := strings.Cut(req.URL.Path, "/blobs/")
		hash, err := v1.NewHash(digest)
		if !isBlob || err != nil || req.Method != http.MethodGet && req.Method != http.MethodHead {
			inner.ServeHTTP(w, req)
			return
		}
		dirs := []string{r.pushed}
		var f fault
		for _, s := range r.stores {
			dirs = append(dirs, filepath.Join(s.dir, "blobs"))
			if s.faults[digest] != "" {
				f = s.faults[digest]
			}
		}
		for _, dir := range dirs {
			if file, err := os.Open(filepath.Join(dir, hash.Algorithm, hash.Hex)); err == nil {
				defer file.Close()
				serveBlob(w, req, file, digest, f)
				return
			}
		}
		inner.ServeHTTP(w, req)
	})
}

func serveBlob(w http.ResponseWriter, req *http.Request, file *os.File, digest string, f fault) {
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Type", "application/octet-stream")
	var content io.ReadSeeker = file
	switch f {
	case missing:
		http.NotFound(w, req)
		return
	case flipped:
		content = &flippedReader{file}
	case truncated:
		info, err := file.Stat()
		if err != nil || req.Method == http.MethodHead {
			break
		}
		w.Header().Set("Content-Length", fmt.Sprint(info.Size()))
		if _, err := io.CopyN(w, file, info.Size()/2); err == nil {
			panic(http.ErrAbortHandler) // ends the connection without a word
		}
		return
	}
	http.ServeContent(w, req, "", time.Time{}, content)
}

// flippedReader changes one bit in every 4096 bytes. The file is a field and not embedded, or net/http would
// find its descriptor and send it without reading here.
type flippedReader struct{ file *os.File }

func (r *flippedReader) Seek(offset int64, whence int) (int64, error) {
	return r.file.Seek(offset, whence)
}

func (r *flippedReader) Read(p []byte) (int, error) {
	at, err := r.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	n, err := r.file.Read(p)
	for i := range p[:n] {
		if (at+int64(i))%4096 == 2048 {
			p[i] ^= 1
		}
	}
	return n, err
}

// announce tells a registry the manifests of a store.
func (s *store) announce(h http.Handler) error {
	idx, err := layout.ImageIndexFromPath(s.dir)
	if err != nil {
		return err
	}
	for ref, d := range s.refs {
		repo, tag, _ := strings.Cut(ref, ":")
		if d.MediaType.IsIndex() {
			child, err := idx.ImageIndex(d.Digest)
			if err != nil {
				return err
			}
			manifest, err := child.IndexManifest()
			if err != nil {
				return err
			}
			for _, m := range manifest.Manifests {
				if err := s.put(h, repo, m.Digest.String(), m); err != nil {
					return err
				}
			}
		}
		if err := s.put(h, repo, tag, d); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) put(h http.Handler, repo, target string, d v1.Descriptor) error {
	f, err := os.Open(filepath.Join(s.dir, "blobs", d.Digest.Algorithm, d.Digest.Hex))
	if err != nil {
		return err
	}
	defer f.Close()
	req := httptest.NewRequest(http.MethodPut, "/v2/"+repo+"/manifests/"+target, f)
	req.Header.Set("Content-Type", string(d.MediaType))
	answer := httptest.NewRecorder()
	h.ServeHTTP(answer, req)
	if answer.Code != http.StatusCreated {
		return fmt.Errorf("announce %s:%s: %d %s", repo, target, answer.Code, answer.Body)
	}
	return nil
}
