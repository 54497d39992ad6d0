package images

import (
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// recipe is one image to build.
type recipe struct {
	layers []*layer
	config v1.Config
	arch   string          // amd64 when empty
	media  types.MediaType // of the layers; OCILayer when empty
	docker bool            // Docker's media types instead of OCI's
}

func (r recipe) build() (v1.Image, error) {
	if r.arch == "" {
		r.arch = "amd64"
	}
	if r.media == "" {
		r.media = types.OCILayer
	}
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	if r.docker {
		r.media = types.DockerLayer
		img = mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.DockerManifestSchema2), types.DockerConfigJSON)
	}
	img, err := mutate.ConfigFile(img, &v1.ConfigFile{
		Architecture: r.arch,
		OS:           "linux",
		Created:      v1.Time{Time: epoch},
		Config:       r.config,
		RootFS:       v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	for i, l := range r.layers {
		built, err := l.build(r.media)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: built, MediaType: r.media, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "pistis test images"},
		})
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return img, nil
}

// index is a manifest list over images of several platforms.
func index(images map[string]v1.Image, order ...string) (v1.ImageIndex, error) {
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, platform := range order {
		p, err := v1.ParsePlatform(platform)
		if err != nil {
			return nil, err
		}
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: images[platform], Descriptor: v1.Descriptor{Platform: p}})
	}
	return idx, nil
}
