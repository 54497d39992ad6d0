package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// addDevices gives a container its devices: those that it names, by path or by CDI name, and on the host's kernel all of
// the host's where it is privileged. Which of them a VM can have is decided where the guest's spec is made.
func addDevices(spec *specs.Spec, cfg Config, vm bool) error {
	var options []oci.SpecOpts
	var names []string
	if cfg.Security.Privileged && !vm {
		options = append(options, oci.WithHostDevices)
	}
	for _, d := range cfg.Devices {
		if d.CDI != "" && vm {
			return fmt.Errorf("CDI device %s: what its driver puts into a container is the host's and not in a VM: %w", d.CDI, errdefs.ErrNotImplemented)
		}
		if d.CDI != "" {
			names = append(names, d.CDI)
			continue
		}
		options = append(options, oci.WithDevices(d.HostPath, d.ContainerPath, permissions(d)))
	}
	for _, option := range options {
		err := option(context.Background(), nil, nil, spec)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, oci.ErrNotADevice):
			return fmt.Errorf("devices: %w: %w", err, errdefs.ErrInvalidArgument)
		case err != nil:
			return fmt.Errorf("devices: %w", err)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return InjectCDI(spec, names)
}

// InjectCDI gives a container of the host's kernel devices by their CDI names.
func InjectCDI(spec *specs.Spec, names []string) error {
	// A cache of its own reads the specification files now: a driver may have written them a moment ago.
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("CDI devices: %w", err)
	}
	if unresolved, err := cache.InjectDevices(spec, names...); err != nil {
		return fmt.Errorf("CDI devices %q: %w; their specification files belong into %q: %w", unresolved, err, cache.GetSpecDirectories(), errdefs.ErrInvalidArgument)
	}
	return nil
}

// permissions of a device; none are all, as in the CRI.
func permissions(d Device) string {
	if d.Permissions == "" {
		return "rwm"
	}
	return d.Permissions
}
