package images

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"
)

// Group is a set of images that is built and served together.
type Group string

const (
	// Tour is the image of `make run`: pistis/tour:latest.
	Tour Group = "tour"
	// Tests are pistis/*: what integration tests use.
	Tests Group = "tests"
	// Broken are pistis/corrupt:* and pistis/hostile:*.
	Broken Group = "broken"
	// Conformance are look-alikes of critest's images.
	Conformance Group = "conformance"
	// Storage has fio: pistis/fio:latest.
	Storage Group = "storage"
)

//go:embed *.go testprog/*.go
var source embed.FS

// sourceDigest changes with the recipes.
func sourceDigest() (string, error) {
	h := sha256.New()
	err := fs.WalkDir(source, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(name, "_test.go") || name == "registry.go" {
			return err
		}
		data, err := source.ReadFile(name)
		fmt.Fprintf(h, "%s %d\n%s", name, len(data), data)
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil))[:16], err
}

// store is one built group: an OCI layout and what is to be spoiled when it is served.
type store struct {
	dir    string
	refs   map[string]v1.Descriptor
	faults map[string]fault
}

const (
	refAnnotation = "org.opencontainers.image.ref.name"
	faultsFile    = "faults.json"
)

// open returns a group's store in the cache, which it builds when it is not there.
func open(ctx context.Context, cache string, group Group, progress func(string)) (*store, error) {
	digest, err := sourceDigest()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, string(group)+"-"+digest)
	if s, err := load(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, err
	}
	if s, err := load(dir); err == nil { // another process was faster
		return s, nil
	}
	old, err := filepath.Glob(filepath.Join(cache, string(group)+"-*"))
	if err != nil {
		return nil, err
	}
	if err := build(ctx, dir, group, progress); err != nil {
		return nil, fmt.Errorf("build the %s images: %w", group, err)
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return nil, err
		}
	}
	return load(dir)
}

func load(dir string) (*store, error) {
	data, err := os.ReadFile(filepath.Join(dir, faultsFile))
	if err != nil {
		return nil, err
	}
	s := &store{dir: dir, refs: map[string]v1.Descriptor{}}
	if err := json.Unmarshal(data, &s.faults); err != nil {
		return nil, err
	}
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, err
	}
	manifest, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range manifest.Manifests {
		s.refs[d.Annotations[refAnnotation]] = d
	}
	return s, nil
}

// platform is one member of a manifest list.
type platform struct {
	name string
	recipe
}

// build makes a group's layout in dir, which comes into being complete or not at all.
func build(ctx context.Context, dir string, group Group, progress func(string)) (err error) {
	progress(fmt.Sprintf("building the %s images", group))
	module, err := moduleRoot()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	part := filepath.Join(work, "layout")
	path, err := layout.Write(part, empty.Index)
	if err != nil {
		return err
	}
	faults := map[string]fault{}
	addImage := func(ref string, img v1.Image) error {
		return path.AppendImage(img, layout.WithAnnotations(map[string]string{refAnnotation: ref}))
	}
	add := func(ref string, r recipe) error {
		img, err := r.build()
		if err != nil {
			return err
		}
		return addImage(ref, img)
	}
	addIndex := func(ref string, platforms ...platform) error {
		members, order := map[string]v1.Image{}, []string{}
		for _, p := range platforms {
			img, err := p.build()
			if err != nil {
				return err
			}
			members[p.name] = img
			order = append(order, p.name)
		}
		idx, err := index(members, order...)
		if err != nil {
			return err
		}
		return path.AppendIndex(idx, layout.WithAnnotations(map[string]string{refAnnotation: ref}))
	}
	b := &builder{ctx: ctx, work: work, apt: filepath.Join(filepath.Dir(dir), "apt"), module: module, progress: progress}
	switch group {
	case Tour:
		err = b.tour(add)
	case Tests:
		err = b.tests(add, addIndex)
	case Broken:
		err = b.broken(addImage, func(h v1.Hash, f fault) { faults[h.String()] = f })
	case Conformance:
		err = b.conformance(add)
	case Storage:
		err = b.storage(add)
	default:
		err = fmt.Errorf("no group %q", group)
	}
	if err != nil {
		return err
	}
	data, err := json.Marshal(faults)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(part, faultsFile), data, 0o644); err != nil {
		return err
	}
	return os.Rename(part, dir)
}

// moduleRoot is the directory of this module's go.mod, at or above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && slices.Contains(strings.Split(string(data), "\n"), "module github.com/pistis-run/pistis") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("test images: run this inside of Pistis' source tree")
		}
	}
}
