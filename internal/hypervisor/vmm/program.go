package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Program is a VMM's program.
type Program struct {
	// Driver is the driver's name, Name the program's on PATH.
	Driver, Name string
	// Install says how to come by it.
	Install string
	// Major and Minor are the oldest version that the driver works with.
	Major, Minor int
}

// Lookup finds the program; binary is its path where the configuration names one.
func (p Program) Lookup(binary string) (string, error) {
	if binary == "" {
		binary = p.Name
	}
	path, err := exec.LookPath(binary)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s: %s: no such program; install it (%s) or set its path in the configuration: %w", p.Driver, binary, p.Install, errdefs.ErrNotFound)
	default:
		return "", fmt.Errorf("%s: %s: %w: %w", p.Driver, binary, err, errdefs.ErrFailedPrecondition)
	}
}

// versionTimeout bounds the program's answer, which a busy host's disk delays when the program runs for the first time.
const versionTimeout = 40 * time.Second

// Version asks the program, as hypervisor.Driver wants it.
func (p Program) Version(ctx context.Context, binary string) (string, error) {
	path, err := p.Lookup(binary)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, versionTimeout, fmt.Errorf("no answer within %v", versionTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // and not that it was killed
		}
		return "", fmt.Errorf("%s: %s --version: %w: %w", p.Driver, path, err, errdefs.ErrFailedPrecondition)
	}
	return p.parse(path, string(out))
}

var versionNumber = regexp.MustCompile(`(?:version | v)((\d{1,4})\.(\d{1,4})(?:\.\d{1,4})*)`)

// parse finds the number in what --version prints.
func (p Program) parse(path, out string) (string, error) {
	m := versionNumber.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s: %s --version prints %.80q, which names no version: %w", p.Driver, path, out, errdefs.ErrFailedPrecondition)
	}
	number := m[1]
	major, _ := strconv.Atoi(m[2])
	minor, _ := strconv.Atoi(m[3])
	if major < p.Major || major == p.Major && minor < p.Minor {
		return "", fmt.Errorf("%s: %s is version %s, %d.%d or later is needed: %w", p.Driver, path, number, p.Major, p.Minor, errdefs.ErrFailedPrecondition)
	}
	return number, nil
}

// AtLeast tells whether a version, as Version returns it, is not older than another.
func AtLeast(version string, major, minor int) bool {
	var v [2]int
	for i, part := range strings.SplitN(version, ".", 3)[:min(2, strings.Count(version, ".")+1)] {
		v[i], _ = strconv.Atoi(part)
	}
	return v[0] > major || v[0] == major && v[1] >= minor
}
