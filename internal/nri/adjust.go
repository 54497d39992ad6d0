package nri

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/pistis-run/pistis/internal/container"
)

// adjust changes a spec as plugins want it, or refuses what would not come to pass. What of the result a guest cannot have
// is refused where its own spec is made.
func adjust(spec *specs.Spec, a *api.ContainerAdjustment, vm bool) error {
	linux := a.GetLinux()
	for what, asked := range map[string]bool{
		"a cgroup of its own: the pod decides":                        linux.GetCgroupsPath() != "",
		"namespaces: the pod decides":                                 len(linux.GetNamespaces()) > 0,
		"network devices":                                             len(linux.GetNetDevices()) > 0,
		"a memory policy":                                             linux.GetMemoryPolicy() != nil,
		"a block I/O class: this node has no classes":                 linux.GetResources().GetBlockioClass() != nil,
		"an RDT class: this node has no classes":                      linux.GetResources().GetRdtClass() != nil,
		"RDT in a VM":                                                 vm && !proto.Equal(linux.GetRdt(), &api.LinuxRdt{}) && linux.GetRdt() != nil,
		"CDI devices in a VM: they are made of parts of the host":     vm && len(a.GetCDIDevices()) > 0,
		"scheduling of a process in a VM: the guest's kernel decides": vm && (linux.GetScheduler() != nil || linux.GetIoPriority() != nil),
	} {
		if asked {
			return fmt.Errorf("a plugin asks for %s; it cannot have that here, change the plugin or its selection of pods: %w", what, errdefs.ErrNotImplemented)
		}
	}
	edited := &editor{spec}
	generator := generate.SpecGenerator(edited, generate.WithCDIDeviceInjector(container.InjectCDI))
	if err := generator.Adjust(a); err != nil {
		return fmt.Errorf("a plugin's adjustment: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	// The generator knows of memory nothing but the limit.
	if m := linux.GetResources().ToOCI(); m != nil && m.Memory != nil {
		edited.mergeMemory(*m.Memory)
	}
	return nil
}

// limits are those of an update.
func limits(u *api.ContainerUpdate) (*specs.LinuxResources, error) {
	r := u.GetLinux().GetResources()
	if r.GetBlockioClass() != nil || r.GetRdtClass() != nil {
		return nil, fmt.Errorf("a plugin asks for a block I/O or RDT class, and this node has none: %w", errdefs.ErrNotImplemented)
	}
	if r == nil {
		return &specs.LinuxResources{}, nil
	}
	return r.ToOCI(), nil
}
