package guestimage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/filelock"
)

// DefaultPackage is the Debian package whose newest version is the guest's kernel.
func DefaultPackage() string { return "linux-image-cloud-" + runtime.GOARCH }

// format changes whenever the same inputs give another guest.
const format = 3

const (
	kernelFile   = "vmlinuz"
	initrdFile   = "initrd"
	modulesFile  = "modules.img"
	manifestFile = "guest.json"
	// lockFile is in a cache of kernels and held by whoever fills it.
	lockFile = "lock"
)

// Options for Build.
type Options struct {
	// Dir is the guest's directory, which Build replaces as a whole.
	Dir string
	// Agent and Runc are static programs for the guest. Both are needed.
	Agent, Runc string
	// Kernel is a bzImage or an ELF vmlinux; empty takes the distribution's package.
	Kernel string
	// ModulesDir is /lib/modules/<version> of Kernel; empty for a kernel with everything built in.
	ModulesDir string
	// Package is the Debian package to take the kernel from, when Kernel is empty; empty is DefaultPackage().
	Package string
	// Refresh looks for a newer package even where one was fetched before.
	Refresh bool
	// ExtraModules are loaded in the guest after those that it needs.
	ExtraModules []string
	// CacheDir has what is known of fetched kernels between builds; empty means "kernels" beside Dir.
	CacheDir string
	// KeepKernel keeps the files of a fetched kernel there too, a hundred megabytes. Without them a build from another agent,
	// say, fetches the newest kernel.
	KeepKernel bool
	// Compression of the initrd; empty takes the fastest to boot that the kernel knows.
	Compression Compression
	// Progress, where set, is called with a line for every step that takes time.
	Progress func(string)
}

// Guest is what a microVM boots.
type Guest struct {
	// Kernel and Initrd are files.
	Kernel, Initrd string
	// KernelVersion as uname -r tells it in the guest.
	KernelVersion string
	// Source says where the kernel came from: a package and its version, or a file.
	Source string
	// Modules that the guest loads, in order.
	Modules []string
	// ModulesDisk is an image with modules that guests load on demand; empty for a kernel that has none.
	ModulesDisk string
}

// manifest is guest.json.
type manifest struct {
	Format        int         `json:"format"`
	KernelVersion string      `json:"kernel_version"`
	Source        string      `json:"source"`
	Compression   Compression `json:"compression"`
	Modules       []string    `json:"modules"`
	// Inputs is a digest over all that the guest was made from.
	Inputs string `json:"inputs"`
	// Sizes in bytes by file name, to notice a damaged guest.
	Sizes map[string]int64 `json:"sizes"`
}

// Build makes the guest in o.Dir, or leaves it as it is when it was made from the same inputs. On error the
// guest that was there before is untouched.
func Build(ctx context.Context, o Options) (_ Guest, err error) {
	o, err = o.complete()
	if err != nil {
		return Guest{}, err
	}
	held, err := filelock.Take(ctx, filepath.Join(o.CacheDir, lockFile))
	if err != nil {
		return Guest{}, fmt.Errorf("guest build: %w", err)
	}
	defer held.Close()
	if k, known := o.knownKernel(); known && !o.KeepKernel {
		if guest, _, same, err := o.same(k); err != nil || same {
			return guest, errors.Join(err, o.dropKernel())
		}
	}
	k, err := o.kernel(ctx)
	if err != nil {
		return Guest{}, fmt.Errorf("guest build: %w", err)
	}
	if !o.KeepKernel && k.packaged {
		defer func() { err = errors.Join(err, o.dropKernel()) }()
	}
	guest, inputs, same, err := o.same(k)
	if err != nil || same {
		return guest, err
	}
	if err := checkReplaceable(o.Dir); err != nil {
		return Guest{}, fmt.Errorf("guest build: %w", err)
	}
	next, m, err := o.assemble(k, inputs)
	if err != nil {
		return Guest{}, fmt.Errorf("guest build: %w", err)
	}
	if err := replaceDir(o.Dir, next); err != nil {
		return Guest{}, fmt.Errorf("guest build: %w", errors.Join(err, os.RemoveAll(next)))
	}
	return m.guest(o.Dir), nil
}

// same returns the guest that is there if it was made from what it would be made from now.
func (o Options) same(k kernel) (guest Guest, inputs string, same bool, err error) {
	if inputs, err = o.digest(k); err != nil {
		return Guest{}, "", false, fmt.Errorf("guest build: %w", err)
	}
	if m, err := readManifest(o.Dir); err == nil && m.Inputs == inputs && m.check(o.Dir) == nil {
		return m.guest(o.Dir), inputs, true, nil
	}
	return Guest{}, inputs, false, nil
}

// Load returns the guest in dir. NotFound when none was built there.
func Load(dir string) (Guest, error) {
	m, err := readManifest(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Guest{}, fmt.Errorf("guest: none in %s, make it with `pistis guest build`: %w", dir, errdefs.ErrNotFound)
	} else if err != nil {
		return Guest{}, fmt.Errorf("guest: %s: %w", dir, err)
	}
	if err := m.check(dir); err != nil {
		return Guest{}, fmt.Errorf("guest: %s is damaged, make it again with `pistis guest build`: %w: %w", dir, err, errdefs.ErrFailedPrecondition)
	}
	return m.guest(dir), nil
}

func (o Options) complete() (Options, error) {
	for _, f := range []struct{ what, value string }{{"directory", o.Dir}, {"agent", o.Agent}, {"runc", o.Runc}} {
		if f.value == "" {
			return o, fmt.Errorf("guest build: no %s given: %w", f.what, errdefs.ErrInvalidArgument)
		}
	}
	if o.Kernel == "" && o.ModulesDir != "" {
		return o, fmt.Errorf("guest build: modules given without their kernel: %w", errdefs.ErrInvalidArgument)
	}
	if o.Package == "" {
		o.Package = DefaultPackage()
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return o, fmt.Errorf("guest build: %w", err)
	}
	o.Dir = dir
	if o.CacheDir == "" {
		o.CacheDir = filepath.Join(filepath.Dir(dir), "kernels")
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return o, fmt.Errorf("guest build: %w", err)
	}
	return o, nil
}

// digest is over everything that decides what the guest becomes.
func (o Options) digest(k kernel) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "format %d\nkernel %s %s\nmodules %v %q %q %q\ncompression %s\n",
		format, k.version, k.source, guestModules, o.ExtraModules, onDemand, notOnDemand, o.Compression)
	files := []string{o.Agent, o.Runc}
	if !k.packaged {
		files = append(files, k.image)
		if k.modules != "" {
			names, err := moduleStamp(k.modules)
			if err != nil {
				return "", err
			}
			fmt.Fprintln(h, names)
		}
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		fh := sha256.New()
		_, err = io.Copy(fh, f)
		f.Close()
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "file %x\n", fh.Sum(nil))
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// moduleStamp stands for the content of a module directory of the administrator's: names, sizes and times.
func moduleStamp(dir string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		return nil
	})
	return b.String(), err
}

// assemble writes a complete guest into a new directory beside o.Dir and returns that.
func (o Options) assemble(k kernel, inputs string) (next string, m manifest, err error) {
	if err := os.MkdirAll(filepath.Dir(o.Dir), 0o755); err != nil {
		return "", m, err
	}
	pattern := "." + filepath.Base(o.Dir) + ".new-"
	stale, err := filepath.Glob(filepath.Join(filepath.Dir(o.Dir), pattern+"*"))
	if err != nil {
		return "", m, err
	}
	for _, s := range stale { // of builds that were killed: we hold the lock
		if err := os.RemoveAll(s); err != nil {
			return "", m, err
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(o.Dir), pattern)
	if err != nil {
		return "", m, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", m, err
	}
	modules, later, err := o.modules(k)
	if err != nil {
		return "", m, err
	}
	t, err := initrd{agent: o.Agent, runc: o.Runc, version: k.version, modules: modules}.tree()
	if err != nil {
		return "", m, err
	}
	m = manifest{Format: format, KernelVersion: k.version, Source: k.source, Inputs: inputs, Compression: o.Compression, Sizes: map[string]int64{}}
	if m.Compression == "" {
		m.Compression = k.compression()
	}
	for _, mod := range modules {
		name, _ := trimModule(mod.path)
		m.Modules = append(m.Modules, name)
	}
	o.Progress(fmt.Sprintf("writing the initrd: agent, runc and %d modules, %s", len(modules), m.Compression))
	if err := writeInitrd(filepath.Join(dir, initrdFile), t, m.Compression); err != nil {
		return "", m, err
	}
	if err := copyFile(filepath.Join(dir, kernelFile), k.image); err != nil {
		return "", m, err
	}
	if len(later) > 0 {
		o.Progress(fmt.Sprintf("writing the modules disk: %d modules to load on demand", len(later)))
		if err := writeModules(filepath.Join(dir, modulesFile), later); err != nil {
			return "", m, err
		}
		m.Sizes[modulesFile] = 0
	}
	return dir, m, m.write(dir)
}

// modules picks the modules for the initrd, and those to load on demand.
func (o Options) modules(k kernel) (first, later []module, err error) {
	if k.modules == "" {
		if len(o.ExtraModules) > 0 {
			return nil, nil, fmt.Errorf("modules %q are asked for, but no modules directory is given: %w", o.ExtraModules, errdefs.ErrInvalidArgument)
		}
		o.Progress("no modules directory: all that a guest needs must be built into the kernel")
		return nil, nil, nil
	}
	set, err := openModules(k.modules)
	if err != nil {
		return nil, nil, err
	}
	set.signed = k.wantsSignatures()
	if first, err = set.forGuest(o.ExtraModules); err != nil {
		return nil, nil, err
	}
	later, err = set.onDemand()
	return first, later, err
}

func (m manifest) guest(dir string) Guest {
	disk := ""
	if _, ok := m.Sizes[modulesFile]; ok {
		disk = filepath.Join(dir, modulesFile)
	}
	return Guest{
		ModulesDisk:   disk,
		Kernel:        filepath.Join(dir, kernelFile),
		Initrd:        filepath.Join(dir, initrdFile),
		KernelVersion: m.KernelVersion,
		Source:        m.Source,
		Modules:       m.Modules,
	}
}

// files are the guest's, beside the manifest.
func (m manifest) files() []string {
	names := []string{kernelFile, initrdFile}
	if _, ok := m.Sizes[modulesFile]; ok {
		names = append(names, modulesFile)
	}
	return names
}

// check notices files that are missing or cut short.
func (m manifest) check(dir string) error {
	for _, name := range m.files() {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if info.Size() != m.Sizes[name] {
			return fmt.Errorf("%s has %d bytes and not %d", name, info.Size(), m.Sizes[name])
		}
	}
	return nil
}

// write completes the manifest with the files' sizes and stores it.
func (m manifest) write(dir string) error {
	for _, name := range m.files() {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		m.Sizes[name] = info.Size()
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), append(data, '\n'), 0o644)
}

func readManifest(dir string) (manifest, error) {
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return manifest{}, fmt.Errorf("%s: %w", manifestFile, err)
	}
	return m, nil
}

// checkReplaceable keeps Build from deleting a directory that is not a guest's.
func checkReplaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains([]string{kernelFile, initrdFile, modulesFile, manifestFile}, e.Name()) {
			return fmt.Errorf("%s holds %s, which is no part of a guest: give an empty or a new directory: %w", dir, e.Name(), errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// replaceDir puts next in the place of dir in one step and removes what was there.
func replaceDir(dir, next string) error {
	err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	switch {
	case err == nil:
		return os.RemoveAll(next)
	case errors.Is(err, unix.ENOENT):
		return os.Rename(next, dir)
	case errors.Is(err, unix.EINVAL): // a file system without exchange
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		return os.Rename(next, dir)
	}
	return fmt.Errorf("replace %s: %w", dir, err)
}

func copyFile(to, from string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if _, err := io.Copy(dst, src); err != nil {
		return err
	}
	return dst.Sync()
}
