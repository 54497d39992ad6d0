package boot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/transport"
)

// moduleList names the kernel modules to load, one absolute path per line, in order.
const moduleList = "/lib/modules/load"

// maxModuleList bounds it.
const maxModuleList = 1 << 20

// moduleParams are for modules that do by themselves what a guest does not need: the disks' addresses are known,
// so that nothing is gained from asking every address of the bus for one.
func moduleParams(path string) string {
	if filepath.Base(path) == "scsi_mod.ko" {
		return "scan=manual"
	}
	return ""
}

// loadModules loads the modules of a list and removes their files, which are memory. One that fails is logged:
// what needs it will say so more clearly.
func loadModules(list, carrier string, log *slog.Logger) error {
	f, err := os.Open(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel that has everything built in
	}
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxModuleList))
	if err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	for _, path := range modulePaths(string(text)) {
		if carrier == transport.KindSerial && strings.Contains(filepath.Base(path), "vsock") {
			continue // the way to the host that is not taken
		}
		if err := loadModule(path); err != nil {
			log.Warn("kernel module not loaded", logfields.Module, path, logfields.Error, err)
			continue
		}
		log.Debug("module loaded", logfields.Module, path, logfields.Uptime, Uptime())
	}
	return nil
}

func modulePaths(text string) []string {
	var paths []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			paths = append(paths, line)
		}
	}
	return paths
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), moduleParams(path), 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return os.Remove(path)
}
