package images

import (
	"archive/tar"
	"fmt"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// tests is the group for the integration tests: sound images in all forms that a registry may hold.
func (b *builder) tests(add func(ref string, r recipe) error, addIndex func(ref string, platforms ...platform) error) error {
	base, err := b.busybox()
	if err != nil {
		return err
	}
	program, err := b.goProgram("test/images/testprog")
	if err != nil {
		return err
	}
	tools := newLayer()
	tools.file("/bin/testprog", 0o755, program)
	tools.file("/bin/testprog-setuid", 0o4755, program)
	tools.text("/srv/index.html", "hello from a pod\n")
	rootfs := []*layer{base, tools}
	main := recipe{layers: rootfs, config: v1.Config{
		Cmd: []string{"sh"}, Env: []string{defaultPath, "FROM_IMAGE=yes"}, WorkingDir: "/",
	}}
	with := func(change func(*v1.Config)) recipe {
		r := main
		change(&r.config)
		return r
	}
	only := newLayer()
	only.file("/testprog", 0o755, program)
	images := []struct {
		ref string
		recipe
	}{
		{"pistis/test:latest", main},
		{"pistis/layers:latest", recipe{layers: append(rootfs, upperLayers()...), config: main.config}},
		{"pistis/files:latest", recipe{layers: []*layer{base, oddFiles()}, config: main.config}},
		{"pistis/many:latest", recipe{layers: []*layer{base, manyFiles(20_000)}, config: main.config}},
		{"pistis/manylayers:latest", recipe{layers: append(rootfs, thinLayers(40)...), config: main.config}},
		{"pistis/user:name", with(func(c *v1.Config) { c.User = "tester" })},
		{"pistis/user:name-group", with(func(c *v1.Config) { c.User = "tester:extra" })},
		{"pistis/user:uid", with(func(c *v1.Config) { c.User = "1234" })},
		{"pistis/user:uid-gid", with(func(c *v1.Config) { c.User = "1234:4321" })},
		{"pistis/user:unknown", with(func(c *v1.Config) { c.User = "nobody-knows" })},
		{"pistis/entrypoint:latest", with(func(c *v1.Config) {
			c.Entrypoint, c.Cmd = []string{"/bin/echo", "entrypoint"}, []string{"cmd"}
			c.Env = append(c.Env, "SECOND=two words")
			c.WorkingDir, c.StopSignal = "/made/by/runtime", "SIGUSR1"
			c.ExposedPorts = map[string]struct{}{"80/tcp": {}, "53/udp": {}}
			c.Volumes = map[string]struct{}{"/data": {}}
			c.Labels = map[string]string{"pistis.test": "entrypoint"}
		})},
		{"pistis/static:latest", recipe{layers: []*layer{only}, config: v1.Config{Entrypoint: []string{"/testprog"}, Cmd: []string{"pause"}}}},
		{"pistis/docker:latest", recipe{layers: rootfs, config: main.config, docker: true}},
		{"pistis/zstd:latest", recipe{layers: rootfs, config: main.config, media: types.OCILayerZStd}},
		{"pistis/uncompressed:latest", recipe{layers: rootfs, config: main.config, media: types.OCIUncompressedLayer}},
		{"pistis/arm64:latest", recipe{layers: rootfs, config: main.config, arch: "arm64"}},
	}
	for _, i := range images {
		if err := add(i.ref, i.recipe); err != nil {
			return fmt.Errorf("%s: %w", i.ref, err)
		}
	}
	arm := main
	arm.arch = "arm64"
	if err := addIndex("pistis/index:latest", platform{"linux/arm64", arm}, platform{"linux/amd64", main}, platform{"unknown/unknown", recipe{}}); err != nil {
		return err
	}
	return addIndex("pistis/index:foreign", platform{"linux/arm64", arm})
}

// upperLayers change, replace and delete what the layers below have.
func upperLayers() []*layer {
	lower, middle, upper := newLayer(), newLayer(), newLayer()
	lower.text("/layers/deleted", "must not be seen\n")
	lower.text("/layers/changed", "old\n")
	lower.text("/layers/file-to-dir", "a file\n")
	lower.text("/layers/dir-to-file/inside", "must not be seen\n")
	lower.text("/layers/opaque/old", "must not be seen\n")
	lower.text("/layers/kept/old", "kept\n")
	lower.text("/layers/again", "first\n")
	lower.text("/layers/tree/deep/down", "must not be seen\n")
	middle.whiteout("/layers/deleted")
	middle.whiteout("/layers/again")
	middle.whiteout("/layers/tree")
	middle.text("/layers/changed", "new\n")
	middle.text("/layers/kept/new", "added\n")
	middle.opaque("/layers/opaque")
	middle.text("/layers/opaque/new", "seen\n")
	upper.text("/layers/again", "second\n")
	upper.text("/layers/file-to-dir/inside", "a directory now\n")
	upper.text("/layers/dir-to-file", "a file now\n")
	upper.hardlink("/layers/twin", "/layers/again")
	return []*layer{lower, middle, upper}
}

// oddFiles has every kind of file and property that a layer may carry.
func oddFiles() *layer {
	l := newLayer()
	l.file("/odd/setuid", 0o4755, []byte("#!/bin/sh\n"))
	l.file("/odd/setgid", 0o2755, []byte("#!/bin/sh\n"))
	l.dir("/odd/sticky", 0o1777)
	l.file("/odd/secret", 0o000, []byte("secret\n"))
	l.add(tar.Header{Typeflag: tar.TypeFifo, Name: "/odd/fifo", Mode: 0o600}, nil)
	l.add(tar.Header{Typeflag: tar.TypeChar, Name: "/odd/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, nil)
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: "/odd/big-ids", Mode: 0o644, Uid: 3_000_000, Gid: 3_000_001}, []byte("x"))
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: "/odd/xattr", Mode: 0o644, PAXRecords: map[string]string{"SCHILY.xattr.user.color": "blue"}}, []byte("x"))
	l.add(tar.Header{Typeflag: tar.TypeReg, Name: "/odd/capable", Mode: 0o755, PAXRecords: map[string]string{
		// version 2, effective, CAP_NET_RAW permitted
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}}, []byte("x"))
	l.text("/odd/"+strings.Repeat("long-name-", 20), "long\n")
	l.text("/odd/"+strings.Repeat("deep/", 60)+"file", "deep\n")
	l.text("/odd/spaces and\ttabs\nand newlines", "x")
	l.text("/odd/ünïcödé-文件", "x")
	l.symlink("/odd/absolute", "/etc/passwd")
	l.symlink("/odd/relative", "../etc/passwd")
	l.symlink("/odd/dangling", "nowhere")
	l.symlink("/odd/outside", "../../../../../../etc/hostname")
	l.hardlink("/odd/twin", "/odd/big-ids")
	l.file("/odd/empty", 0o644, nil)
	l.file("/odd/numbers", 0o644, numbers(7, 3<<20))
	return l
}

func manyFiles(n int) *layer {
	l := newLayer()
	for i := range n {
		l.text(path.Join("/many", fmt.Sprintf("%02x/%02x", i%64, i/64%64), fmt.Sprint(i)), fmt.Sprintln(i))
	}
	return l
}

// thinLayers are layers with one file each, and one that all of them change.
func thinLayers(n int) []*layer {
	var layers []*layer
	for i := range n {
		l := newLayer()
		l.text(fmt.Sprintf("/thin/%d", i), fmt.Sprintln(i))
		l.text("/thin/last", fmt.Sprintln(i))
		layers = append(layers, l)
	}
	return layers
}
