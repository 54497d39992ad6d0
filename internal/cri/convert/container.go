package convert

import (
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
)

var cdiName = regexp.MustCompile(`^[A-Za-z0-9][-._A-Za-z0-9]*/[A-Za-z0-9][-._A-Za-z0-9]*=[A-Za-z0-9][-._:A-Za-z0-9]*$`)

var propagations = map[runtime.MountPropagation]string{
	runtime.MountPropagation_PROPAGATION_PRIVATE:           "private",
	runtime.MountPropagation_PROPAGATION_HOST_TO_CONTAINER: "rslave",
	runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL:     "rshared",
}

// Container validates a container's configuration for its pod and converts it. ImageRef is still empty.
func Container(c *runtime.ContainerConfig, pod sandbox.Status) (container.Config, error) {
	if err := validateContainer(c, pod); err != nil {
		return container.Config{}, err
	}
	cfg := container.Config{
		SandboxID: pod.ID, Name: c.Metadata.Name, Attempt: c.Metadata.Attempt, Image: userImage(c.Image),
		Process: container.Process{
			Command: slices.Clone(c.Command), Args: slices.Clone(c.Args), WorkDir: c.WorkingDir,
			Stdin: c.Stdin, StdinOnce: c.StdinOnce, TTY: c.Tty,
		},
		Labels: maps.Clone(c.Labels), Annotations: maps.Clone(c.Annotations),
		LogPath: c.LogPath,
	}
	var err error
	if cfg.StopSignal, err = signalName(c.StopSignal); err != nil {
		return container.Config{}, err
	}
	if cfg.Env, err = environment(c.Envs); err != nil {
		return container.Config{}, err
	}
	if cfg.Mounts, err = mounts(c.Mounts); err != nil {
		return container.Config{}, err
	}
	if cfg.Devices, err = devices(c.Devices, c.CDIDevices); err != nil {
		return container.Config{}, err
	}
	if cfg.Resources, err = toOCIResources("config.linux.resources", c.GetLinux().GetResources()); err != nil {
		return container.Config{}, err
	}
	cfg.OOMScore = int(c.GetLinux().GetResources().GetOomScoreAdj())
	if cfg.Security, err = securityContext(c.GetLinux().GetSecurityContext(), pod); err != nil {
		return container.Config{}, err
	}
	return cfg, nil
}

// userImage is what a person called the image; the kubelet sends an id beside it.
func userImage(s *runtime.ImageSpec) string {
	if s.UserSpecifiedImage != "" {
		return s.UserSpecifiedImage
	}
	return s.Image
}

func validateContainer(c *runtime.ContainerConfig, pod sandbox.Status) error {
	switch {
	case c == nil:
		return invalid("the request has no config")
	case c.Windows != nil:
		return unsupported("config.windows: this node runs Linux containers")
	case c.Metadata == nil:
		return invalid("config.metadata is missing: it names the container")
	case c.GetImage().GetImage() == "":
		return invalid("config.image.image is missing")
	case c.StdinOnce && !c.Stdin:
		return invalid("config.stdin_once needs config.stdin")
	case c.WorkingDir != "" && (!path.IsAbs(c.WorkingDir) || hasNUL(c.WorkingDir)):
		return invalid("config.working_dir: %q is not an absolute path", c.WorkingDir)
	}
	if err := validateName("config.metadata.name", c.Metadata.Name); err != nil {
		return err
	}
	for _, words := range [][]string{c.Command, c.Args} {
		for _, word := range words {
			if hasNUL(word) {
				return invalid("config.command and config.args: %q has a NUL byte in it", word)
			}
		}
	}
	if err := validateLogPath(pod.Config.LogDir, c.LogPath); err != nil {
		return err
	}
	return validatePairs("config", c.Labels, c.Annotations)
}

func environment(envs []*runtime.KeyValue) ([]string, error) {
	var list []string
	for i, e := range envs {
		key := e.GetKey()
		if key == "" || strings.ContainsAny(key, "=\x00") || hasNUL(string(e.GetValue())) {
			return nil, invalid("config.envs[%d]: %q is not the name of an environment variable, or its value has a NUL byte in it", i, key)
		}
		if !utf8.Valid(e.Value) {
			return nil, invalid("config.envs[%d] (%s): the value is not UTF-8, which a runtime spec cannot carry", i, key)
		}
		list = append(list, key+"="+string(e.Value))
	}
	return list, nil
}

func mounts(list []*runtime.Mount) ([]container.Mount, error) {
	var out []container.Mount
	for i, m := range list {
		if m == nil {
			return nil, invalid("config.mounts[%d] is empty", i)
		}
		if err := validateMount(i, m); err != nil {
			return nil, err
		}
		out = append(out, container.Mount{
			ContainerPath: m.ContainerPath, HostPath: m.HostPath, Readonly: m.Readonly, RecursiveReadonly: m.RecursiveReadOnly,
			SELinuxRelabel: m.SelinuxRelabel, Propagation: propagations[m.Propagation],
			Image: m.GetImage().GetImage(), SubPath: m.ImageSubPath,
			UIDMappings: idMappings(m.UidMappings), GIDMappings: idMappings(m.GidMappings), Options: slices.Clone(m.MountOptions),
		})
	}
	return out, nil
}

func validateMount(i int, m *runtime.Mount) error {
	_, knownPropagation := propagations[m.Propagation]
	switch {
	case !path.IsAbs(m.ContainerPath) || hasNUL(m.ContainerPath) || path.Clean(m.ContainerPath) == "/":
		return invalid("config.mounts[%d]: container path %q is not an absolute path below /", i, m.ContainerPath)
	case m.Image != nil && m.HostPath != "":
		return invalid("config.mounts[%d] (%s): an image and a host path exclude each other", i, m.ContainerPath)
	case m.Image != nil && m.Image.Image == "":
		return invalid("config.mounts[%d] (%s): the image has no name", i, m.ContainerPath)
	case m.Image != nil && !m.Readonly:
		return invalid("config.mounts[%d] (%s): an image can only be mounted read-only", i, m.ContainerPath)
	case m.Image != nil && m.Propagation != runtime.MountPropagation_PROPAGATION_PRIVATE:
		return invalid("config.mounts[%d] (%s): nothing is mounted in an image: its propagation can only be private", i, m.ContainerPath)
	case m.Image == nil && (!filepath.IsAbs(m.HostPath) || hasNUL(m.HostPath)):
		return invalid("config.mounts[%d] (%s): host path %q is not an absolute path", i, m.ContainerPath, m.HostPath)
	case m.ImageSubPath != "" && m.Image == nil:
		return invalid("config.mounts[%d] (%s): an image sub path needs an image", i, m.ContainerPath)
	case m.ImageSubPath != "" && !filepath.IsLocal(m.ImageSubPath):
		return invalid("config.mounts[%d] (%s): image sub path %q leads out of the image", i, m.ContainerPath, m.ImageSubPath)
	case !knownPropagation:
		return invalid("config.mounts[%d] (%s): unknown propagation %d", i, m.ContainerPath, m.Propagation)
	case m.RecursiveReadOnly && (!m.Readonly || m.Propagation != runtime.MountPropagation_PROPAGATION_PRIVATE):
		return invalid("config.mounts[%d] (%s): recursive read-only needs read-only and private propagation", i, m.ContainerPath)
	}
	for _, option := range m.MountOptions {
		if !slices.Contains([]string{"noexec", "nodev", "nosuid"}, option) {
			return invalid("config.mounts[%d] (%s): mount option %q is not one of noexec, nodev and nosuid", i, m.ContainerPath, option)
		}
	}
	return nil
}

func idMappings(list []*runtime.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range list {
		out = append(out, specs.LinuxIDMapping{HostID: m.GetHostId(), ContainerID: m.GetContainerId(), Size: m.GetLength()})
	}
	return out
}

func devices(list []*runtime.Device, cdi []*runtime.CDIDevice) ([]container.Device, error) {
	var out []container.Device
	for i, d := range list {
		if !filepath.IsAbs(d.GetHostPath()) || !path.IsAbs(d.GetContainerPath()) || hasNUL(d.GetHostPath()+d.GetContainerPath()) {
			return nil, invalid("config.devices[%d]: %q on the host and %q in the container must both be absolute paths",
				i, d.GetHostPath(), d.GetContainerPath())
		}
		if strings.Trim(d.Permissions, "rwm") != "" {
			return nil, invalid("config.devices[%d] (%s): permissions %q are not made of r, w and m", i, d.ContainerPath, d.Permissions)
		}
		out = append(out, container.Device{ContainerPath: d.ContainerPath, HostPath: d.HostPath, Permissions: d.Permissions})
	}
	for i, d := range cdi {
		if !cdiName.MatchString(d.GetName()) {
			return nil, invalid("config.CDI_devices[%d]: %q is not a name such as vendor.com/class=device", i, d.GetName())
		}
		out = append(out, container.Device{CDI: d.Name})
	}
	return out, nil
}

// Mount is what a container has, as CRI says it.
func Mount(m container.Mount) *runtime.Mount {
	mount := &runtime.Mount{
		ContainerPath: m.ContainerPath, HostPath: m.HostPath, Readonly: m.Readonly,
		RecursiveReadOnly: m.RecursiveReadonly, SelinuxRelabel: m.SELinuxRelabel, ImageSubPath: m.SubPath,
		MountOptions: slices.Clone(m.Options),
	}
	for mode, name := range propagations {
		if name == m.Propagation {
			mount.Propagation = mode
		}
	}
	if m.Image != "" {
		mount.Image = &runtime.ImageSpec{Image: m.Image}
	}
	for _, id := range m.UIDMappings {
		mount.UidMappings = append(mount.UidMappings, &runtime.IDMapping{HostId: id.HostID, ContainerId: id.ContainerID, Length: id.Size})
	}
	for _, id := range m.GIDMappings {
		mount.GidMappings = append(mount.GidMappings, &runtime.IDMapping{HostId: id.HostID, ContainerId: id.ContainerID, Length: id.Size})
	}
	return mount
}
