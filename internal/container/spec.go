package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/image"
	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// makeSpec turns the configuration into a runtime spec.
func makeSpec(rec record, pod sandbox.Status, img image.Image) (*specs.Spec, error) {
	cfg := rec.Config
	mounts, err := specMounts(rec.ID, cfg.Mounts)
	if err != nil {
		return nil, err
	}
	if err := checkPropagation(cfg.Mounts, pod.VM); err != nil {
		return nil, err
	}
	security, err := specSecurity(cfg.Security)
	if err != nil {
		return nil, err
	}
	if cfg.Security.Privileged && security.SELinuxLabel == "" && !pod.VM {
		security.SELinuxLabel = oci.SELinuxUnconfined
	}
	spec, err := oci.Generate(oci.Input{
		ID: rec.ID, Name: cfg.Name, ImageName: cfg.Image, Image: img.Config.Config,
		Sandbox: oci.Sandbox{
			ID: pod.ID, Name: pod.Config.Name, Namespace: pod.Config.Namespace, UID: pod.Config.UID,
			Hostname: pod.Config.Hostname, CgroupParent: pod.Config.CgroupParent,
		},
		Command: cfg.Command, Args: cfg.Args, WorkDir: cfg.WorkDir, Env: cfg.Env, Terminal: cfg.TTY,
		Mounts: mounts, Resources: cfg.Resources, OOMScoreAdj: cfg.OOMScore, Security: security,
	})
	if err != nil {
		return nil, err
	}
	return spec, addDevices(spec, cfg, pod.VM)
}

func specSecurity(s Security) (oci.Security, error) {
	out := oci.Security{
		Privileged: s.Privileged, NoNewPrivs: s.NoNewPrivs, ReadonlyRoot: s.ReadonlyRoot,
		AddCaps: s.AddCaps, DropCaps: s.DropCaps, AmbientCaps: s.AmbientCaps,
		SELinuxLabel: s.SELinuxLabel, MaskedPaths: s.MaskedPaths, ReadonlyPaths: s.ReadonlyPaths,
	}
	switch s.Seccomp.Kind {
	case ProfileDefault:
		out.Seccomp = seccomp.DefaultProfile
	case ProfileLocalhost:
		profile, err := oci.ReadSeccomp(s.Seccomp.Path)
		if err != nil {
			return oci.Security{}, err
		}
		out.Seccomp = func(*specs.Spec) *specs.LinuxSeccomp { return profile }
	case ProfileUnconfined, "":
	default:
		return oci.Security{}, fmt.Errorf("seccomp profile type %q is not known: %w", s.Seccomp.Kind, errdefs.ErrInvalidArgument)
	}
	switch s.AppArmor.Kind {
	case ProfileDefault:
		// Which keeps from mounting; what is named by its name holds for a privileged container too.
		if !s.Privileged {
			out.AppArmorProfile = string(ProfileDefault)
		}
	case ProfileLocalhost:
		out.AppArmorProfile = s.AppArmor.Path
	case ProfileUnconfined, "":
	default:
		return oci.Security{}, fmt.Errorf("AppArmor profile type %q is not known: %w", s.AppArmor.Kind, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

func specMounts(container string, mounts []Mount) ([]specs.Mount, error) {
	var out []specs.Mount
	for i, m := range mounts {
		if m.Image != "" {
			// Read-only and without programs, as Kubernetes documents it. The owners are mapped where it is mounted.
			out = append(out, specs.Mount{
				Destination: m.ContainerPath, Type: "bind", Source: unmounted(volumeID(container, i)),
				Options: []string{"rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"},
			})
			continue
		}
		if _, err := os.Stat(m.HostPath); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("mount at %s: host path %s does not exist on this node: %w", m.ContainerPath, m.HostPath, errdefs.ErrInvalidArgument)
		} else if err != nil {
			return nil, fmt.Errorf("mount at %s: %w: %w", m.ContainerPath, err, errdefs.ErrInvalidArgument)
		}
		options := []string{"rbind", propagationOption(m.Propagation), "rw"}
		switch {
		case m.RecursiveReadonly:
			options[2] = "rro"
		case m.Readonly:
			options[2] = "ro"
		}
		out = append(out, specs.Mount{
			Destination: m.ContainerPath, Type: "bind", Source: m.HostPath, Options: append(options, m.Options...),
			UIDMappings: m.UIDMappings, GIDMappings: m.GIDMappings,
		})
	}
	return out, nil
}

// checkPropagation refuses what the runtime would accept and the kernel not do: mounts travel only where the mount that
// the volume lies on is shared (mount_namespaces(7)). That a VM cannot have rshared at all is said where its spec is made.
func checkPropagation(mounts []Mount, vm bool) error {
	for _, m := range mounts {
		if m.Propagation != "rslave" && (m.Propagation != "rshared" || vm) {
			continue
		}
		source, err := filepath.EvalSymlinks(m.HostPath)
		if err != nil {
			return fmt.Errorf("mount at %s: %w: %w", m.ContainerPath, err, errdefs.ErrInvalidArgument)
		}
		above, err := mountinfo.GetMounts(mountinfo.ParentsFilter(source))
		if err != nil {
			return fmt.Errorf("mount at %s: %w", m.ContainerPath, err)
		}
		var on *mountinfo.Info
		for _, info := range above {
			if on == nil || len(info.Mountpoint) >= len(on.Mountpoint) { // a later one covers an earlier one
				on = info
			}
		}
		switch {
		case on == nil, strings.Contains(on.Optional, "shared:"):
		case m.Propagation == "rslave" && strings.Contains(on.Optional, "master:"):
		default:
			return fmt.Errorf("mount at %s: %s lies on the mount %s, which is not shared, so that mounts would not propagate; "+
				"make it shared (mount --make-rshared %[3]s) or use the propagation None: %w", m.ContainerPath, m.HostPath, on.Mountpoint, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func propagationOption(p string) string {
	if p == "rslave" || p == "rshared" {
		return p
	}
	return "rprivate"
}

// stopSignal is the first of the names that is set, SIGTERM without any. A name is a signal's, with or without SIG, its
// number, or RTMIN+n or RTMAX-n.
func stopSignal(names ...string) (unix.Signal, error) {
	for _, name := range names {
		if name != "" {
			return parseSignal(name)
		}
	}
	return unix.SIGTERM, nil
}

func parseSignal(name string) (unix.Signal, error) {
	const rtmin, rtmax = 34, 64 // the first two real-time signals are the C library's
	upper := strings.TrimPrefix(strings.ToUpper(strings.TrimSpace(name)), "SIG")
	n, err := strconv.Atoi(upper)
	switch {
	case err == nil:
	case upper == "RTMIN":
		n = rtmin
	case upper == "RTMAX":
		n = rtmax
	case strings.HasPrefix(upper, "RTMIN+"):
		n, err = strconv.Atoi(upper[len("RTMIN+"):])
		n = realtime(n, rtmin+n, err)
	case strings.HasPrefix(upper, "RTMAX-"):
		n, err = strconv.Atoi(upper[len("RTMAX-"):])
		n = realtime(n, rtmax-n, err)
	default:
		n = int(unix.SignalNum("SIG" + upper))
	}
	if n < 1 || n > rtmax {
		return 0, fmt.Errorf("stop signal %q is not a signal of Linux: %w", name, errdefs.ErrInvalidArgument)
	}
	return unix.Signal(n), nil
}

// realtime is the signal, or 0 where the offset is none.
func realtime(offset, signal int, err error) int {
	if err != nil || offset < 0 || offset > 30 {
		return 0
	}
	return signal
}
