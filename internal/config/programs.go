package config

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"
)

const (
	// ShimName is the VM shim's program.
	ShimName = "containerd-shim-pistis-v2"
	// QEMUName is what runs where VM.QEMU is empty.
	QEMUName = "qemu-system-x86_64"
)

// FindShim returns the path of a handler's shim: its own, that of all VMs, the one beside this program, the one on
// PATH. FailedPrecondition when there is none.
func (v VM) FindShim(h Handler) (string, error) {
	for _, path := range []string{h.Path, v.Shim} {
		if path == "" {
			continue
		}
		if _, err := exec.LookPath(path); err != nil {
			return "", fmt.Errorf("shim: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		if path, err := exec.LookPath(filepath.Join(filepath.Dir(self), ShimName)); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(ShimName)
	if err != nil {
		return "", fmt.Errorf("shim: %s is neither beside this program nor on PATH; install it, or set vm.shim in the configuration: %w",
			ShimName, errdefs.ErrFailedPrecondition)
	}
	return filepath.Abs(path)
}

// FindQEMU returns the path of QEMU. FailedPrecondition when there is none.
func (v VM) FindQEMU() (string, error) {
	name := v.QEMU
	if name == "" {
		name = QEMUName
	}
	path, err := exec.LookPath(name)
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", fmt.Errorf("qemu: %w; install it (Debian: apt install qemu-system-x86), or set vm.qemu in the configuration: %w",
			err, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}
