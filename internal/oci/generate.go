package oci

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	// rootDir is the root file system relative to the bundle, for runtimes that take one from there.
	rootDir = "rootfs"
)

// Annotations that say whose container this is; their names are those of containerd, which tools look for.
const (
	AnnotationContainerType    = "io.kubernetes.cri.container-type"
	AnnotationContainerName    = "io.kubernetes.cri.container-name"
	AnnotationImageName        = "io.kubernetes.cri.image-name"
	AnnotationSandboxID        = "io.kubernetes.cri.sandbox-id"
	AnnotationSandboxName      = "io.kubernetes.cri.sandbox-name"
	AnnotationSandboxNamespace = "io.kubernetes.cri.sandbox-namespace"
	AnnotationSandboxUID       = "io.kubernetes.cri.sandbox-uid"
)

// Generate returns the runtime spec of a container. The process's user is left to whoever sees the root file
// system. Errors are InvalidArgument and say what to change.
func Generate(in Input) (*specs.Spec, error) {
	args, err := processArgs(in.Command, in.Args, in.Image)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", in.Name, err)
	}
	caps, err := capabilities(in.Security)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", in.Name, err)
	}
	env, err := processEnv(in)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", in.Name, err)
	}
	mounts, propagation, err := allMounts(in)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", in.Name, err)
	}
	spec := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Terminal:        in.Terminal,
			Args:            args,
			Env:             env,
			Cwd:             workDir(in),
			Capabilities:    caps,
			NoNewPrivileges: in.Security.NoNewPrivs,
			ApparmorProfile: in.Security.AppArmorProfile,
			SelinuxLabel:    in.Security.SELinuxLabel,
			OOMScoreAdj:     &in.OOMScoreAdj,
		},
		Root:        &specs.Root{Path: rootDir, Readonly: in.Security.ReadonlyRoot},
		Mounts:      mounts,
		Annotations: annotations(in),
		Linux: &specs.Linux{
			CgroupsPath:       path.Join("/", in.Sandbox.CgroupParent, in.ID),
			Namespaces:        namespaces(in),
			Resources:         resources(in),
			Devices:           in.Devices,
			RootfsPropagation: propagation,
		},
	}
	confine(spec, in.Security)
	return spec, nil
}

func annotations(in Input) map[string]string {
	return map[string]string{
		AnnotationContainerType:    "container",
		AnnotationContainerName:    in.Name,
		AnnotationImageName:        in.ImageName,
		AnnotationSandboxID:        in.Sandbox.ID,
		AnnotationSandboxName:      in.Sandbox.Name,
		AnnotationSandboxNamespace: in.Sandbox.Namespace,
		AnnotationSandboxUID:       in.Sandbox.UID,
	}
}

// processArgs follows Kubernetes: command replaces the image's entrypoint and its cmd, args replace the cmd.
func processArgs(command, args []string, image ocispec.ImageConfig) ([]string, error) {
	if len(command) == 0 {
		// An entrypoint of one empty string is how a Dockerfile takes back its base image's.
		if !slices.Equal(image.Entrypoint, []string{""}) {
			command = image.Entrypoint
		}
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 {
		return nil, fmt.Errorf("no command: the image has neither entrypoint nor cmd, so the container must name one: %w", errdefs.ErrInvalidArgument)
	}
	for _, arg := range all {
		if strings.ContainsRune(arg, 0) {
			return nil, fmt.Errorf("argument %q contains a zero byte: %w", arg, errdefs.ErrInvalidArgument)
		}
	}
	return all, nil
}

// processEnv merges, later ones winning: the image's, HOSTNAME, TERM, the container's.
func processEnv(in Input) ([]string, error) {
	all := slices.Concat([]string{defaultPath}, in.Image.Env)
	if in.Terminal {
		all = append(all, "TERM=xterm")
	}
	if in.Sandbox.Hostname != "" {
		all = append(all, "HOSTNAME="+in.Sandbox.Hostname)
	}
	all = append(all, in.Env...)
	var merged []string
	at := map[string]int{}
	for _, kv := range all {
		key, _, ok := strings.Cut(kv, "=")
		if !ok || key == "" || strings.ContainsRune(kv, 0) {
			return nil, fmt.Errorf("environment variable %q is not KEY=value: %w", kv, errdefs.ErrInvalidArgument)
		}
		if i, again := at[key]; again {
			merged[i] = kv
			continue
		}
		at[key] = len(merged)
		merged = append(merged, kv)
	}
	return merged, nil
}

func workDir(in Input) string {
	for _, dir := range []string{in.WorkDir, in.Image.WorkingDir} {
		if dir == "" {
			continue
		}
		if !path.IsAbs(dir) {
			dir = "/" + dir // a Dockerfile may say WORKDIR app
		}
		return path.Clean(dir)
	}
	return "/"
}

func namespaces(in Input) []specs.LinuxNamespace {
	types := []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.NetworkNamespace}
	if !in.Security.Privileged {
		types = append(types, specs.CgroupNamespace)
	}
	if _, ok := in.Sandbox.Namespaces[specs.UserNamespace]; ok {
		types = append(types, specs.UserNamespace)
	}
	var all []specs.LinuxNamespace
	for _, typ := range types {
		file, named := in.Sandbox.Namespaces[typ]
		if named && file == "" {
			continue // the host's
		}
		all = append(all, specs.LinuxNamespace{Type: typ, Path: file})
	}
	return all
}

// resources adds the device rules to what was asked for: everything for a privileged container, otherwise what
// the runtime allows by itself and the container's own devices.
func resources(in Input) *specs.LinuxResources {
	var r specs.LinuxResources
	if in.Resources != nil {
		r = *in.Resources
	}
	if in.Security.Privileged {
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		return &r
	}
	r.Devices = append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, r.Devices...)
	return &r
}
