package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

const (
	defaultBinary = "qemu-system-x86_64"
	// maxLUNs is what one target is addressed with in SCSI's simple form.
	maxLUNs = 256
	// minMemory is what a distribution's kernel with our initrd boots in.
	minMemory = 128 << 20
)

// The oldest QEMU that knows all that the command line uses.
const minMajor, minMinor = 7, 2

// Driver starts VMs with QEMU.
type Driver struct{}

// Name is qemu.
func (Driver) Name() string { return "qemu" }

// Capabilities of VMs that QEMU runs.
func (Driver) Capabilities() hypervisor.Capabilities {
	return hypervisor.Capabilities{HotplugDisk: true, MaxDisks: maxLUNs, MinMemory: minMemory}
}

// Version is QEMU's, as 7.2.22. An empty binary looks on PATH.
func (Driver) Version(ctx context.Context, binary string) (string, error) {
	path, err := lookup(binary)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, hypervisor.ControlTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("qemu: %s --version: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	}
	return parseVersion(path, string(out))
}

var versionLine = regexp.MustCompile(`version (\d{1,4})\.(\d{1,4})(?:\.\d{1,4})*`)

// parseVersion finds the number in what --version prints.
func parseVersion(path, out string) (string, error) {
	m := versionLine.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("qemu: %s --version prints %.80q, which names no version: %w", path, out, errdefs.ErrFailedPrecondition)
	}
	number := m[0][len("version "):]
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	if major < minMajor || major == minMajor && minor < minMinor {
		return "", fmt.Errorf("qemu: %s is version %s, %d.%d or later is needed: %w", path, number, minMajor, minMinor, errdefs.ErrFailedPrecondition)
	}
	return number, nil
}

// lookup finds the program.
func lookup(binary string) (string, error) {
	if binary == "" {
		binary = defaultBinary
	}
	path, err := exec.LookPath(binary)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("qemu: %s: no such program; install it (Debian: apt-get install qemu-system-x86) or set its path in the configuration: %w", binary, errdefs.ErrNotFound)
	default:
		return "", fmt.Errorf("qemu: %s: %w: %w", binary, err, errdefs.ErrFailedPrecondition)
	}
}
