package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds one decompressed module. The largest of Debian's kernels has 12 MiB.
const maxModule = 64 << 20

// guestModules are what a guest loads, the way to the host first. Without the needed ones, loaded or built into
// the kernel, a guest is of no use; the others are taken where the kernel has them.
var guestModules = []struct {
	name   string
	needed bool
}{
	{"virtio_pci", true},
	{"virtio_mmio", false},
	{"virtio_console", true},
	{"vsock", false},
	{"vmw_vsock_virtio_transport", false},
	{"virtio_net", true},
	{"virtio_scsi", true},
	{"sd_mod", true},
	{"virtio_blk", false},
	{"ext4", true},
	{"overlay", true},
	{"fuse", false},
	{"virtio_rng", false},
	{"virtio_mem", false},
	{"virtio_balloon", false},
	{"af_packet", false},
	{"ipv6", false},
}

// module is a kernel module, decompressed.
type module struct {
	// path is relative to the module directory, without the suffix of a compression.
	path string
	data []byte
}

// moduleSet is a kernel's module directory, /lib/modules/<version>.
type moduleSet struct {
	dir     string
	paths   map[string]string // canonical name → path below dir
	builtin map[string]bool   // canonical names
	// signed modules stay so: the kernel would not take others.
	signed bool
}

// canonical is how the kernel names a module: it takes '-' and '_' for the same.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// trimModule turns a file name into a module's name; ok is false for other files.
func trimModule(file string) (name string, ok bool) {
	base := path.Base(file)
	for _, ext := range []string{".xz", ".zst", ".gz"} {
		base = strings.TrimSuffix(base, ext)
	}
	name, ok = strings.CutSuffix(base, ".ko")
	return canonical(name), ok
}

// openModules indexes a module directory by file names; modules.dep is not needed (a package that was not
// installed has none), since every module names what it depends on.
func openModules(dir string) (*moduleSet, error) {
	s := &moduleSet{dir: dir, paths: map[string]string{}, builtin: map[string]bool{}}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	for line := range strings.Lines(string(list)) {
		if name, ok := trimModule(strings.TrimSpace(line)); ok {
			s.builtin[name] = true
		}
	}
	err = filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if name, ok := trimModule(file); ok {
			rel, err := filepath.Rel(dir, file)
			if err != nil {
				return err
			}
			s.paths[name] = filepath.ToSlash(rel)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("kernel modules: %w", err)
	}
	return s, nil
}

// has says whether the kernel can do what the module does.
func (s *moduleSet) has(name string) bool {
	name = canonical(name)
	return s.builtin[name] || s.paths[name] != ""
}

// forGuest returns the guest's modules and the extra ones, in the order of loading.
func (s *moduleSet) forGuest(extra []string) ([]module, error) {
	var names []string
	for _, m := range guestModules {
		if m.needed || s.has(m.name) {
			names = append(names, m.name)
		}
	}
	return s.closure(append(names, extra...))
}

// closure returns the named modules and all that they need, dependencies first, without those built in.
func (s *moduleSet) closure(names []string) ([]module, error) {
	var (
		order   []module
		visited = map[string]bool{}
		visit   func(name, by string) error
	)
	visit = func(name, by string) error {
		name = canonical(name)
		if visited[name] || s.builtin[name] {
			return nil
		}
		visited[name] = true // before its dependencies: a circle ends here
		file, ok := s.paths[name]
		if !ok {
			return fmt.Errorf("kernel modules: %s has no module %s%s, and modules.builtin does not name it: %w", s.dir, name, by, errdefs.ErrNotFound)
		}
		data, err := readModule(filepath.Join(s.dir, file))
		if err != nil {
			return fmt.Errorf("kernel modules: %s: %w", file, err)
		}
		info, err := parseModinfo(data)
		if err != nil {
			return fmt.Errorf("kernel modules: %s: %w", file, err)
		}
		for _, dep := range info.depends {
			if err := visit(dep, ", which "+name+" needs"); err != nil {
				return err
			}
		}
		for _, dep := range info.softdeps {
			// A soft dependency may name an alias or nothing at all: it is a wish.
			if s.paths[canonical(dep)] != "" {
				if err := visit(dep, ""); err != nil {
					return err
				}
			}
		}
		if !s.signed {
			data = withoutSignature(data)
		}
		order = append(order, module{path: uncompressedPath(file), data: data})
		return nil
	}
	for _, name := range names {
		if err := visit(name, ""); err != nil {
			return nil, err
		}
	}
	return order, nil
}

func uncompressedPath(file string) string {
	return file[:strings.LastIndex(file, ".ko")+len(".ko")]
}

// readModule reads a module and decompresses it by its suffix.
func readModule(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(file) {
	case ".xz":
		r, err = xz.NewReader(f)
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule)); err == nil {
			defer d.Close()
			r = d
		}
	}
	if err != nil {
		return nil, err
	}
	return readBounded(r, maxModule)
}

// readBounded reads all of r, and fails when that is more than limit bytes.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	var b bytes.Buffer
	n, err := b.ReadFrom(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("larger than %d MiB", limit>>20)
	}
	return b.Bytes(), nil
}

// signatureMagic ends a signed module.
const signatureMagic = "~Module signature appended~\n"

// withoutSignature cuts the signature that a distribution appends to a module. Nobody in a guest asks for it: who
// writes the initrd decides what the guest runs anyway. But a kernel verifies a signature that is there, which is a
// public-key operation for each module of each boot.
func withoutSignature(data []byte) []byte {
	const trailer = 12 // struct module_signature, which ends with the signature's length
	body, signed := bytes.CutSuffix(data, []byte(signatureMagic))
	if !signed || len(body) < trailer {
		return data
	}
	length := int64(binary.BigEndian.Uint32(body[len(body)-4:])) + trailer
	if length > int64(len(body)) {
		return data
	}
	return body[:int64(len(body))-length]
}

type modinfo struct {
	depends  []string
	softdeps []string // those that are to be loaded before
	aliases  []string
}

// parseModinfo reads the key=value strings that a module carries of itself.
func parseModinfo(data []byte) (modinfo, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return modinfo{}, err
	}
	section := f.Section(".modinfo")
	if section == nil || section.Type == elf.SHT_NOBITS || section.Size > uint64(len(data)) {
		return modinfo{}, errors.New("not a kernel module: no .modinfo section")
	}
	raw, err := section.Data()
	if err != nil {
		return modinfo{}, err
	}
	var info modinfo
	for item := range strings.SplitSeq(string(raw), "\x00") {
		key, value, _ := strings.Cut(item, "=")
		switch key {
		case "depends":
			for dep := range strings.SplitSeq(value, ",") {
				if dep != "" {
					info.depends = append(info.depends, dep)
				}
			}
		case "alias":
			info.aliases = append(info.aliases, value)
		case "softdep":
			info.softdeps = append(info.softdeps, preDependencies(value)...)
		}
	}
	return info, nil
}

// preDependencies takes the names after "pre:" from "pre: a b post: c".
func preDependencies(value string) []string {
	var names []string
	pre := false
	for _, word := range strings.Fields(value) {
		switch word {
		case "pre:":
			pre = true
		case "post:":
			pre = false
		default:
			if pre {
				names = append(names, word)
			}
		}
	}
	return names
}
