package images

import v1 "github.com/google/go-containerregistry/pkg/v1"

// storage is the group of images with programs that check and measure file systems.
func (b *builder) storage(add func(ref string, r recipe) error) error {
	base, err := b.busybox()
	if err != nil {
		return err
	}
	root, err := b.unpack(true, "fio")
	if err != nil {
		return err
	}
	fio := newLayer()
	if err := fio.addProgram(root, "usr/bin/fio"); err != nil {
		return err
	}
	return add("pistis/fio:latest", recipe{layers: []*layer{base, fio}, config: v1.Config{Cmd: []string{"fio", "--help"}, Env: []string{defaultPath}}})
}
