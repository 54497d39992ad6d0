package hostpod

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	contrib "github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// defaultAppArmor is the profile that stands for "runtime/default".
	defaultAppArmor = "pistis-default"
	runtimeDefault  = "runtime/default"
)

// confineByHost fits the AppArmor profile of a process to this host's kernel. A default without AppArmor is nothing; what a
// user chose by name is a promise, and refused where it cannot be kept.
func confineByHost(spec *specs.Spec) error {
	process := spec.Process
	switch enabled := apparmor.HostSupports(); {
	case process.ApparmorProfile == runtimeDefault && !enabled:
		process.ApparmorProfile = ""
	case process.ApparmorProfile == runtimeDefault:
		if err := contrib.LoadDefaultProfile(defaultAppArmor); err != nil {
			return fmt.Errorf("load the default AppArmor profile: %w", err)
		}
		process.ApparmorProfile = defaultAppArmor
	case process.ApparmorProfile != "" && !enabled:
		return fmt.Errorf("AppArmor profile %q: AppArmor is not enabled on this host; use the profile type RuntimeDefault or Unconfined: %w", process.ApparmorProfile, errdefs.ErrFailedPrecondition)
	case process.ApparmorProfile != "":
		return profileLoaded(profiles, process.ApparmorProfile)
	}
	return nil
}

// profiles lists those that the kernel has, one a line with its mode, as "docker-default (enforce)".
const profiles = "/sys/kernel/security/apparmor/profiles"

// profileLoaded refuses a profile that the kernel does not have: the runtime would only notice when the container starts.
func profileLoaded(list, name string) error {
	f, err := os.Open(list)
	if err != nil {
		return fmt.Errorf("AppArmor profile %q: %w", name, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if line := lines.Text(); strings.HasPrefix(line, name+" (") {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("AppArmor profile %q: %w", name, err)
	}
	return fmt.Errorf("AppArmor profile %q is not loaded on this node; load it with apparmor_parser: %w", name, errdefs.ErrFailedPrecondition)
}
