package config

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"
)

const (
	// ShimName is the VM shim's program.
	ShimName = "containerd-shim-pistis-v2"
	// MonitorName is the program that watches over containers on the host's kernel.
	MonitorName = "pistis-monitor"
)

// QEMU is the program that runs where VM.QEMU is empty, and the Debian package that has it.
func QEMU() (program, pkg string) {
	switch runtime.GOARCH {
	case "amd64":
		return "qemu-system-x86_64", "qemu-system-x86"
	case "arm64":
		return "qemu-system-aarch64", "qemu-system-arm"
	}
	return "qemu-system-" + runtime.GOARCH, "qemu-system-misc"
}

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
	path, err := find(ShimName)
	if err != nil {
		return "", fmt.Errorf("shim: %w; install it, or set vm.shim in the configuration: %w", err, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}

// FindMonitor returns the path of pistis-monitor. FailedPrecondition when there is none.
func (c Config) FindMonitor() (string, error) {
	if c.Monitor != "" {
		if _, err := exec.LookPath(c.Monitor); err != nil {
			return "", fmt.Errorf("monitor: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		return c.Monitor, nil
	}
	path, err := find(MonitorName)
	if err != nil {
		return "", fmt.Errorf("monitor: %w; install it, or set monitor in the configuration: %w", err, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}

// find looks for one of this project's programs: beside this one, then on PATH.
func find(name string) (string, error) {
	if path, ok := beside(name); ok {
		return path, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither beside this program nor on PATH", name)
	}
	return filepath.Abs(path)
}

func beside(name string) (string, bool) {
	self, err := os.Executable()
	if err != nil {
		return "", false
	}
	path, err := exec.LookPath(filepath.Join(filepath.Dir(self), name))
	return path, err == nil
}

// FindRuntime returns the path of the OCI runtime of the handler that is called name: its own, that on PATH, or the one
// that was built for guests, which runs on hosts as well. FailedPrecondition when there is none.
func (h Handler) FindRuntime(name string) (string, error) {
	if h.Path != "" {
		if _, err := exec.LookPath(h.Path); err != nil {
			return "", fmt.Errorf("runtime: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		return h.Path, nil
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	for _, place := range []string{"guest", "../lib/pistis/guest"} {
		if path, ok := beside(filepath.Join(place, name)); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("runtime: %s is not on PATH; install it (Debian: apt install %s), or set handlers.%s.path in the configuration: %w",
		name, name, name, errdefs.ErrFailedPrecondition)
}

// FindVMM returns the path of a hypervisor's program. FailedPrecondition when there is none.
func (v VM) FindVMM(name string) (string, error) {
	program, pkg := QEMU()
	key, set, install := "vm.qemu", v.QEMU, "Debian: apt install "+pkg
	switch name {
	case DriverFirecracker:
		program, key, set, install = name, "vm.firecracker", v.Firecracker, "a release of the Firecracker project has it"
	case DriverCloudHypervisor:
		program, key, set, install = name, "vm.cloud_hypervisor", v.CloudHypervisor, "a release of the Cloud Hypervisor project has it"
	}
	path, err := exec.LookPath(cmp.Or(set, program))
	if err != nil && !errors.Is(err, exec.ErrDot) {
		return "", fmt.Errorf("%s: %w; install it (%s), or set %s in the configuration: %w", name, err, install, key, errdefs.ErrFailedPrecondition)
	}
	return path, nil
}
