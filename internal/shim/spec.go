package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxSpec bounds a spec in bytes; the agent's messages are bounded to 4 MiB.
const maxSpec = 2 << 20

// readSpec reads a container's spec from its bundle.
func readSpec(bundle string) (*specs.Spec, error) {
	path := filepath.Join(bundle, "config.json")
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("spec: %w: %w", err, errdefs.ErrInvalidArgument)
	} else if err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, fmt.Errorf("spec: %w", err)
	}
	if len(data) > maxSpec {
		return nil, fmt.Errorf("spec: %s is larger than %d bytes: %w", path, maxSpec, errdefs.ErrInvalidArgument)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("spec: %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("spec: %s: no process or no args: %w", path, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

// execProcess is an OCI process whose user may be absent.
type execProcess struct {
	Terminal        bool                     `json:"terminal,omitempty"`
	ConsoleSize     *specs.Box               `json:"consoleSize,omitempty"`
	User            *specs.User              `json:"user,omitempty"`
	Args            []string                 `json:"args"`
	Env             []string                 `json:"env,omitempty"`
	Cwd             string                   `json:"cwd"`
	Capabilities    *specs.LinuxCapabilities `json:"capabilities,omitempty"`
	Rlimits         []specs.POSIXRlimit      `json:"rlimits,omitempty"`
	NoNewPrivileges bool                     `json:"noNewPrivileges,omitempty"`
	OOMScoreAdj     *int                     `json:"oomScoreAdj,omitempty"`
}

// guestProcess rebuilds the process of an exec for the guest.
func guestProcess(data []byte) (*execProcess, error) {
	if len(data) > maxSpec {
		return nil, fmt.Errorf("process: larger than %d bytes: %w", maxSpec, errdefs.ErrInvalidArgument)
	}
	var host specs.Process
	var user struct {
		User *specs.User `json:"user"`
	}
	if err := errors.Join(json.Unmarshal(data, &host), json.Unmarshal(data, &user)); err != nil {
		return nil, fmt.Errorf("process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch {
	case len(host.Args) == 0:
		return nil, fmt.Errorf("process: no args: %w", errdefs.ErrInvalidArgument)
	case host.SelinuxLabel != "":
		return nil, fmt.Errorf("process: SELinux label %s: the guest's kernel has no SELinux policy: %w", host.SelinuxLabel, errdefs.ErrNotImplemented)
	case host.Scheduler != nil, host.IOPriority != nil, host.ExecCPUAffinity != nil:
		return nil, fmt.Errorf("process: scheduler, I/O priority and CPU affinity of an exec are not supported in a VM: %w", errdefs.ErrNotImplemented)
	}
	// An AppArmor profile is the container's, which was checked when the container was made.
	return &execProcess{
		Terminal: host.Terminal, ConsoleSize: host.ConsoleSize, User: user.User, Args: host.Args, Env: host.Env, Cwd: host.Cwd,
		Capabilities: host.Capabilities, Rlimits: host.Rlimits, NoNewPrivileges: host.NoNewPrivileges, OOMScoreAdj: host.OOMScoreAdj,
	}, nil
}
