package images

import (
	"archive/tar"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

// fault is how a registry spoils a blob when it serves it.
type fault string

const (
	flipped   fault = "flipped"   // the right size, wrong bytes
	truncated fault = "truncated" // the connection ends half way
	missing   fault = "missing"   // 404
)

// broken is the group of images that must be refused, or be harmless.
//
// pistis/corrupt:flipped, :truncated and :missing have a layer that is not what its digest says; :diffid has a
// sound layer, but its config names another content. pistis/hostile:* have layers that reach for files outside
// of the root file system: /pistis-escape-* of the host must never come into being.
func (b *builder) broken(add func(ref string, img v1.Image) error, spoil func(v1.Hash, fault)) error {
	for i, f := range []fault{flipped, truncated, missing} {
		l := newLayer()
		l.file("/data", 0o644, numbers(uint32(100+i), 256<<10)) // a blob that no other image has
		img, err := recipe{layers: []*layer{l}, config: v1.Config{Cmd: []string{"/data"}}}.build()
		if err != nil {
			return err
		}
		layers, err := img.Layers()
		if err != nil {
			return err
		}
		digest, err := layers[0].Digest()
		if err != nil {
			return err
		}
		spoil(digest, f)
		if err := add("pistis/corrupt:"+string(f), img); err != nil {
			return err
		}
	}
	img, err := wrongDiffID()
	if err != nil {
		return err
	}
	if err := add("pistis/corrupt:diffid", img); err != nil {
		return err
	}
	for tag, l := range hostileLayers() {
		lower := newLayer()
		lower.text("/etc/passwd", passwd)
		img, err := recipe{layers: []*layer{lower, l}, config: v1.Config{Cmd: []string{"/bin/true"}}}.build()
		if err != nil {
			return fmt.Errorf("hostile %s: %w", tag, err)
		}
		if err := add("pistis/hostile:"+tag, img); err != nil {
			return err
		}
	}
	return nil
}

func wrongDiffID() (v1.Image, error) {
	l := newLayer()
	l.text("/data", "not what the config says\n")
	img, err := recipe{layers: []*layer{l}, config: v1.Config{Cmd: []string{"/data"}}}.build()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0] = v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%064x", 1)}
	return mutate.ConfigFile(img, config)
}

// hostileLayers are by the trick that they try.
func hostileLayers() map[string]*layer {
	file := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}
	}
	link := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
	}
	hard := func(name, target string) tar.Header {
		return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}
	}
	dir := func(name string) tar.Header {
		return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o777, Uid: 1000}
	}
	content := []byte("escaped\n")
	layers := map[string]*layer{}
	make := func(tag string, headers ...tar.Header) {
		l := newLayer()
		for _, h := range headers {
			if h.Typeflag == tar.TypeReg {
				l.raw(h, content)
			} else {
				l.raw(h, nil)
			}
		}
		layers[tag] = l
	}
	make("dotdot", file("../../../../../../../../pistis-escape-dotdot"))
	make("dotdot-inside", file("etc/../../../../../../../../pistis-escape-dotdot-inside"))
	make("absolute", file("/pistis-escape-absolute"))
	make("symlink", link("door", "/"), file("door/pistis-escape-symlink"))
	make("symlink-relative", link("door", "../../../../../../../.."), file("door/pistis-escape-symlink-relative"))
	make("symlink-chain", link("a", "/"), link("b", "a"), file("b/pistis-escape-symlink-chain"))
	make("symlink-over-dir", dir("etc/"), link("etc", "/"), file("etc/pistis-escape-symlink-over-dir"))
	make("symlink-loop", link("x", "y"), link("y", "x"), file("x/pistis-escape-loop"))
	make("hardlink", hard("stolen", "../../../../../../../../etc/shadow"))
	make("hardlink-absolute", hard("stolen", "/etc/shadow"))
	make("hardlink-symlink", link("door", "/etc"), hard("stolen", "door/shadow"))
	make("hardlink-missing", hard("stolen", "no/such/file"))
	make("whiteout", file("../../../../../../../../.wh.pistis-escape-whiteout"))
	make("whiteout-dotdot", file(".wh..."), file("etc/.wh..."), file("etc/.wh.."))
	make("whiteout-empty", file("etc/.wh."))
	make("name-dot", dir("."), dir(".."), dir("../.."), file("etc/."), file(".."))
	make("name-slash", dir("/"), dir("//"))
	return layers
}
