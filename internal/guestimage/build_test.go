package guestimage

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// options for a build from files that are made up.
func options(t *testing.T) Options {
	dir := t.TempDir()
	vmlinux := program("Linux version 6.1.0-test (gcc) " + strings.Repeat("code", 5000))
	write(t, filepath.Join(dir, "boot/config-6.1.0-test"), []byte("# CONFIG_X is not set\nCONFIG_RD_GZIP=y\nCONFIG_RD_LZ4=y\n"))
	return Options{
		Dir:        filepath.Join(dir, "state/guest"),
		Agent:      write(t, filepath.Join(dir, "agent"), program("agent")),
		Runc:       write(t, filepath.Join(dir, "runc"), program("runc")),
		Kernel:     write(t, filepath.Join(dir, "boot/vmlinuz-6.1.0-test"), bzImage(t, "lz4", "6.1.0-test", vmlinux)),
		ModulesDir: moduleDir(t),
		Progress:   func(line string) { t.Log(line) },
	}
}

func TestBuild(t *testing.T) {
	o := options(t)
	if _, err := Load(o.Dir); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "pistis guest build") {
		t.Errorf("Load without a guest: %v", err)
	}
	guest, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if guest.KernelVersion != "6.1.0-test" || !slices.Contains(guest.Modules, "virtio_pci") || slices.Contains(guest.Modules, "ext4") {
		t.Errorf("got %+v", guest)
	}
	loaded, err := Load(o.Dir)
	if err != nil || loaded.Initrd != guest.Initrd || loaded.Kernel != guest.Kernel || !slices.Equal(loaded.Modules, guest.Modules) {
		t.Errorf("Load: %+v, %v", loaded, err)
	}
	m, err := readManifest(o.Dir)
	if err != nil || m.Compression != LZ4 {
		t.Errorf("manifest: %+v, %v", m, err)
	}
	entries, err := os.ReadDir(filepath.Dir(o.Dir))
	if err != nil || len(entries) != 2 { // guest and kernels
		t.Errorf("left in the directory above: %v, %v", entries, err)
	}
}

// TestBuildOnlyWhenNeeded looks at the initrd's inode: a build makes a new file.
func TestBuildOnlyWhenNeeded(t *testing.T) {
	o := options(t)
	build := func() os.FileInfo {
		t.Helper()
		guest, err := Build(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(guest.Initrd)
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	refused := notOnDemand
	t.Cleanup(func() { notOnDemand = refused })
	last := build()
	unchanged := build()
	if !os.SameFile(last, unchanged) {
		t.Error("built again without a change")
	}
	for name, change := range map[string]func(){
		"agent":       func() { write(t, o.Agent, program("new agent")) },
		"runc":        func() { write(t, o.Runc, program("new runc")) },
		"extra":       func() { o.ExtraModules = []string{"crc"} },
		"refused":     func() { notOnDemand = append(notOnDemand, "net/x/*") },
		"compression": func() { o.Compression = Gzip },
		"module":      func() { write(t, filepath.Join(o.ModulesDir, "kernel/new.ko"), ko()) },
		"damage":      func() { write(t, filepath.Join(o.Dir, initrdFile), []byte("cut")) },
		"no manifest": func() { os.Remove(filepath.Join(o.Dir, manifestFile)) },
	} {
		change()
		now := build()
		if os.SameFile(last, now) {
			t.Errorf("%s: not built again", name)
		}
		last = now
	}
}

func TestLoadDamaged(t *testing.T) {
	o := options(t)
	guest, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	write(t, guest.Kernel, []byte("cut"))
	if _, err := Load(o.Dir); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

func TestFailedBuildKeepsTheGuest(t *testing.T) {
	o := options(t)
	before, err := Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	o.ExtraModules = []string{"nonsense"}
	if _, err := Build(t.Context(), o); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
	if after, err := Load(o.Dir); err != nil || after.Initrd != before.Initrd {
		t.Errorf("the guest is gone: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Dir), ".guest*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestBuildRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Options)
		is     func(error) bool
	}{
		"no directory":            {func(o *Options) { o.Dir = "" }, errdefs.IsInvalidArgument},
		"no agent":                {func(o *Options) { o.Agent = "" }, errdefs.IsInvalidArgument},
		"no runc":                 {func(o *Options) { o.Runc = "" }, errdefs.IsInvalidArgument},
		"modules without kernel":  {func(o *Options) { o.Kernel = "" }, errdefs.IsInvalidArgument},
		"no such kernel":          {func(o *Options) { o.Kernel = "/no/such/kernel" }, errdefs.IsNotFound},
		"kernel that is none":     {func(o *Options) { o.Kernel = o.Agent }, errdefs.IsInvalidArgument},
		"modules that are none":   {func(o *Options) { o.ModulesDir = filepath.Dir(o.Agent) }, errdefs.IsInvalidArgument},
		"extras without modules":  {func(o *Options) { o.ModulesDir, o.ExtraModules = "", []string{"x"} }, errdefs.IsInvalidArgument},
		"somebody else's":         {func(o *Options) { o.Dir = filepath.Dir(o.Agent) }, errdefs.IsFailedPrecondition},
		"dynamically linked runc": {func(o *Options) { o.Runc = write(t, o.Runc, elfFile(".text", nil, true)) }, errdefs.IsInvalidArgument},
	} {
		o := options(t)
		test.change(&o)
		if _, err := Build(t.Context(), o); !test.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKernelWithoutModules(t *testing.T) {
	o := options(t)
	o.ModulesDir = ""
	guest, err := Build(t.Context(), o)
	if err != nil || len(guest.Modules) != 0 {
		t.Errorf("%+v, %v", guest, err)
	}
}

// TestFetchedKernelIsDropped: a hundred megabytes of which no guest has any use, and which are no change of anything.
func TestFetchedKernelIsDropped(t *testing.T) {
	for _, keep := range []bool{false, true} {
		o := options(t)
		cache := t.TempDir()
		f := fetched{Name: "linux-image-6.1.0-test", Version: "6.1-1"}
		dir := f.dir(cache)
		if err := os.MkdirAll(filepath.Join(dir, "lib/modules"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(filepath.Dir(o.Kernel), filepath.Join(dir, "boot")), os.Rename(o.ModulesDir, filepath.Join(dir, "lib/modules/6.1.0-test"))); err != nil {
			t.Fatal(err)
		}
		o.Kernel, o.ModulesDir, o.CacheDir, o.Package, o.KeepKernel = "", "", cache, "linux-image-test", keep
		f.Kernel = "6.1.0-test"
		record, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		write(t, o.record(), record)
		first, err := Build(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); (err == nil) != keep {
			t.Errorf("keep: %t: the kernel's files: %v", keep, err)
		}
		again, err := Build(t.Context(), o)
		if err != nil || again.Source != first.Source || again.KernelVersion != first.KernelVersion {
			t.Errorf("keep: %t: the second build: %+v, %v", keep, again, err)
		}
	}
}
