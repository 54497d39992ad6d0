package guestimage

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// moduleDir is a module directory with dependencies, a circle, aliases and compressed files.
func moduleDir(t testing.TB) string {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "modules.builtin"), []byte("kernel/fs/ext4/ext4.ko\nkernel/net/packet/af_packet.ko\n"))
	write(t, filepath.Join(dir, "kernel/drivers/virtio/virtio.ko"), ko("depends=virtio_ring", "name=virtio"))
	write(t, filepath.Join(dir, "kernel/drivers/virtio/virtio-ring.ko.xz"), compress(t, "xz", ko("depends=")))
	write(t, filepath.Join(dir, "kernel/drivers/virtio/virtio_pci.ko.zst"), compress(t, "zstd", ko("depends=virtio,virtio_ring,ext4")))
	write(t, filepath.Join(dir, "kernel/crypto/crc.ko.gz"), compress(t, "gzip", ko("license=GPL")))
	write(t, filepath.Join(dir, "kernel/fs/soft.ko"), ko("softdep=pre: crc crypto-alias post: virtio_pci"))
	write(t, filepath.Join(dir, "kernel/a.ko"), ko("depends=b"))
	write(t, filepath.Join(dir, "kernel/b.ko"), ko("depends=a"))
	write(t, filepath.Join(dir, "kernel/lost.ko"), ko("depends=gone"))
	write(t, filepath.Join(dir, "kernel/bad.ko"), []byte("no module"))
	for _, m := range guestModules {
		if m.needed && m.name != "virtio_pci" && m.name != "ext4" {
			write(t, filepath.Join(dir, "kernel/needed", m.name+".ko"), ko("depends=virtio"))
		}
	}
	return dir
}

func TestClosure(t *testing.T) {
	set, err := openModules(moduleDir(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		names []string
		want  string
	}{
		{[]string{"virtio_pci"}, "virtio-ring.ko virtio.ko virtio_pci.ko"},
		{[]string{"virtio-pci", "virtio_pci", "virtio"}, "virtio-ring.ko virtio.ko virtio_pci.ko"},
		{[]string{"ext4", "af_packet"}, ""},
		{[]string{"soft"}, "crc.ko soft.ko"},
		{[]string{"a"}, "b.ko a.ko"},
	} {
		mods, err := set.closure(test.names)
		if err != nil {
			t.Errorf("%q: %v", test.names, err)
			continue
		}
		var got []string
		for _, m := range mods {
			got = append(got, path.Base(m.path))
			if _, err := parseModinfo(m.data); err != nil {
				t.Errorf("%s is not decompressed: %v", m.path, err)
			}
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%q: %q, want %q", test.names, got, test.want)
		}
	}
	if _, err := set.closure([]string{"lost"}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "gone, which lost needs") {
		t.Errorf("lost: %v", err)
	}
	if _, err := set.closure([]string{"nonsense"}); !errdefs.IsNotFound(err) {
		t.Errorf("nonsense: %v", err)
	}
	if _, err := set.closure([]string{"bad"}); err == nil {
		t.Error("a file that is no module was taken")
	}
	if !set.has("virtio-pci") || !set.has("ext4") || set.has("nonsense") {
		t.Error("has is wrong")
	}
}

func TestPreDependencies(t *testing.T) {
	for value, want := range map[string][]string{
		"pre: a b post: c": {"a", "b"}, "post: c": nil, "pre: x": {"x"}, "": nil, "stray": nil,
	} {
		if got := preDependencies(value); !slices.Equal(got, want) {
			t.Errorf("%q: %q", value, got)
		}
	}
}

func TestReadBounded(t *testing.T) {
	for n, ok := range map[int]bool{9: true, 10: true, 11: false} {
		if _, err := readBounded(strings.NewReader(strings.Repeat("x", n)), 10); (err == nil) != ok {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func FuzzModinfo(f *testing.F) {
	f.Add(ko("depends=a,b", "softdep=pre: c"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if info, err := parseModinfo(data); err == nil {
			_ = fmt.Sprint(info)
		}
	})
}

func TestWithoutSignature(t *testing.T) {
	body := ko("name=signed")
	signature := append([]byte("a signature"), 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, byte(len("a signature")))
	signed := slices.Concat(body, signature, []byte(signatureMagic))
	if got := withoutSignature(signed); !slices.Equal(got, body) {
		t.Errorf("%d bytes are left of a signed module, and not %d", len(got), len(body))
	}
	lying := slices.Concat(body, []byte{0, 0, 2, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, []byte(signatureMagic))
	for _, data := range [][]byte{body, nil, []byte(signatureMagic), lying} {
		if got := withoutSignature(data); !slices.Equal(got, data) {
			t.Errorf("%d bytes without a signature became %d", len(data), len(got))
		}
	}
}
