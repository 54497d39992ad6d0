package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pistis-run/pistis/internal/guestimage"
)

// kernel is the lab's.
type kernel struct {
	guestimage.Kernel
	// base has the modules under lib/modules, as modprobe -d wants it.
	base string
}

// fetchKernel brings the kernel's package into the cache, and indexes its modules, unless that was done before.
func fetchKernel(ctx context.Context, o options) (kernel, error) {
	progress := func(line string) { fmt.Fprintln(o.stderr, "lab:", line) }
	found, err := guestimage.FetchKernel(ctx, kernelPackage, o.cache, progress)
	if err != nil {
		return kernel{}, err
	}
	base, ok := strings.CutSuffix(found.Modules, filepath.Join("/lib/modules", found.Version))
	if !ok || strings.ContainsAny(base, " \t\n\"") {
		return kernel{}, fmt.Errorf("%s cannot be on a kernel's command line: choose another -cache", found.Modules)
	}
	k := kernel{Kernel: found, base: base}
	// A package that was not installed has no index of its modules.
	_, err = os.Stat(filepath.Join(k.Modules, "modules.dep.bin"))
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	progress("indexing the kernel's modules")
	if out, err := exec.CommandContext(ctx, "depmod", "-b", k.base, k.Version).CombinedOutput(); err != nil {
		return kernel{}, fmt.Errorf("depmod: %w: %s", err, out)
	}
	return k, nil
}
