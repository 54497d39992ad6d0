package images

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/pistis-run/pistis/internal/debian"
)

// builder makes layers from unpacked Debian packages and programs of ours.
type builder struct {
	ctx context.Context
	// work is a scratch directory that is removed after the build.
	work string
	// apt is the private apt's directory, which stays: it saves fetching the package lists again.
	apt      string
	module   string // root of this module's source
	progress func(string)
}

// unpack downloads packages and returns a directory with their files: the packages alone, or with all that
// they depend on.
func (b *builder) unpack(withDependencies bool, names ...string) (string, error) {
	apt, err := debian.Open(debian.Options{Dir: b.apt, Progress: b.progress})
	if err != nil {
		return "", err
	}
	if err := apt.Update(b.ctx); err != nil {
		return "", err
	}
	fetch := apt.Fetch
	if withDependencies {
		fetch = apt.FetchAll
	}
	files, err := fetch(b.ctx, names...)
	if err != nil {
		return "", err
	}
	root, err := os.MkdirTemp(b.work, "root-")
	if err != nil {
		return "", err
	}
	b.progress(fmt.Sprintf("unpacking %d packages", len(files)))
	for _, f := range files {
		if err := debian.Extract(b.ctx, f, root); err != nil {
			return "", err
		}
	}
	return root, nil
}

// goProgram builds the static program in a directory of this module.
func (b *builder) goProgram(dir string) ([]byte, error) {
	b.progress("building " + dir)
	out := filepath.Join(b.work, "program")
	cmd := exec.CommandContext(b.ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./"+dir)
	cmd.Dir = b.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64", "GOOS=linux")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build %s: %w: %s", dir, err, msg)
	}
	return os.ReadFile(out)
}

// libraryDirs is where Debian keeps shared libraries.
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph", "lib", "usr/lib", "lib64"}

// addProgram adds a dynamically linked program of an unpacked root, with its libraries and its linker.
func (l *layer) addProgram(root, name string) error {
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return err
	}
	l.file("/"+name, 0o755, data)
	f, err := elf.Open(filepath.Join(root, name))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		interp := make([]byte, p.Filesz)
		if _, err := p.ReadAt(interp, 0); err != nil {
			return err
		}
		if err := l.addLibrary(root, strings.Trim(string(interp), "\x00")); err != nil {
			return err
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, lib := range libraries {
		if err := l.findLibrary(root, lib); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (l *layer) findLibrary(root, lib string) error {
	for _, dir := range libraryDirs {
		name := "/" + path.Join(dir, lib)
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			return l.addLibrary(root, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("library %s is in none of the packages", lib)
}

// addLibrary adds a library under the name that programs know it by, and what it needs in turn.
func (l *layer) addLibrary(root, name string) error {
	if l.has(name) {
		return nil
	}
	file, err := filepath.EvalSymlinks(filepath.Join(root, name))
	if err != nil {
		// An absolute link in the package (ld-linux) is meant inside of the root.
		target, lerr := os.Readlink(filepath.Join(root, name))
		if lerr != nil || !path.IsAbs(target) {
			return err
		}
		file = filepath.Join(root, target)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	l.file(name, 0o755, data)
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	needs, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, lib := range needs {
		if err := l.findLibrary(root, lib); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
