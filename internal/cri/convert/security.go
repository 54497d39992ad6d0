package convert

import (
	"math"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

var (
	capabilityPattern = regexp.MustCompile(`^(?i)(ALL|(CAP_)?[A-Z][A-Z_]*)$`)
	userPattern       = regexp.MustCompile(`^[^:\s\x00]{1,256}$`)
	labelPattern      = regexp.MustCompile(`^[-A-Za-z0-9_.:,]*$`)
)

// securityContext validates and converts a container's security context; a nil one has the CRI's defaults.
func securityContext(c *runtime.LinuxContainerSecurityContext, pod sandbox.Status) (container.Security, error) {
	const field = "config.linux.security_context"
	caps := c.GetCapabilities()
	s := container.Security{
		Privileged: c.GetPrivileged(), NoNewPrivs: c.GetNoNewPrivs(), ReadonlyRoot: c.GetReadonlyRootfs(),
		Capabilities: container.Capabilities{
			AddCaps: slices.Clone(caps.GetAddCapabilities()), DropCaps: slices.Clone(caps.GetDropCapabilities()),
			AmbientCaps: slices.Clone(caps.GetAddAmbientCapabilities()),
		},
		MaskedPaths: slices.Clone(c.GetMaskedPaths()), ReadonlyPaths: slices.Clone(c.GetReadonlyPaths()),
	}
	if s.Privileged && !pod.Config.Privileged {
		return s, invalid("%s.privileged: pod %s was not made for privileged containers (its security_context.privileged is false)", field, pod.ID)
	}
	for _, name := range slices.Concat(s.AddCaps, s.DropCaps, s.AmbientCaps) {
		if !capabilityPattern.MatchString(name) {
			return s, invalid("%s.capabilities: %q is not a capability such as NET_ADMIN", field, name)
		}
	}
	for _, p := range slices.Concat(s.MaskedPaths, s.ReadonlyPaths) {
		if !path.IsAbs(p) || hasNUL(p) {
			return s, invalid("%s: masked or read-only path %q is not absolute", field, p)
		}
	}
	var err error
	if s.User, err = userRequest(field, c); err != nil {
		return s, err
	}
	if s.Seccomp, err = profile(field+".seccomp", c.GetSeccomp(), c.GetSeccompProfilePath(), container.ProfileUnconfined); err != nil {
		return s, err
	}
	if s.Seccomp.Kind == container.ProfileLocalhost && !filepath.IsAbs(s.Seccomp.Path) {
		return s, invalid("%s.seccomp: profile %q is not an absolute path", field, s.Seccomp.Path)
	}
	if s.AppArmor, err = profile(field+".apparmor", c.GetApparmor(), c.GetApparmorProfile(), container.ProfileDefault); err != nil {
		return s, err
	}
	if s.AppArmor.Kind == container.ProfileLocalhost && pod.VM {
		return s, invalid("%s.apparmor: profile %q is loaded into the host's kernel, and the pod has a kernel of its own; "+
			"use RuntimeDefault or Unconfined in microVM pods", field, s.AppArmor.Path)
	}
	if s.SELinuxLabel, err = selinuxLabel(field, c.GetSelinuxOptions()); err != nil {
		return s, err
	}
	if err := containerNamespaces(field+".namespace_options", c.GetNamespaceOptions(), pod, &s); err != nil {
		return s, err
	}
	return s, nil
}

func userRequest(field string, c *runtime.LinuxContainerSecurityContext) (task.UserRequest, error) {
	var u task.UserRequest
	uid, gid, name := c.GetRunAsUser(), c.GetRunAsGroup(), c.GetRunAsUsername()
	switch {
	case uid != nil && name != "":
		return u, invalid("%s: run_as_user and run_as_username exclude each other", field)
	case gid != nil && uid == nil && name == "":
		return u, invalid("%s: run_as_group needs run_as_user or run_as_username", field)
	case name != "" && !userPattern.MatchString(name):
		return u, invalid("%s.run_as_username: %q is not a user's name", field, name)
	}
	u.User = name
	if uid != nil {
		id, err := posixID(field+".run_as_user", uid.Value)
		if err != nil {
			return u, err
		}
		u.User = strconv.FormatUint(uint64(id), 10)
	}
	if gid != nil {
		id, err := posixID(field+".run_as_group", gid.Value)
		if err != nil {
			return u, err
		}
		u.GID = &id
	}
	for _, group := range c.GetSupplementalGroups() {
		id, err := posixID(field+".supplemental_groups", group)
		if err != nil {
			return u, err
		}
		u.SupplementalGroups = append(u.SupplementalGroups, id)
	}
	switch policy := c.GetSupplementalGroupsPolicy(); policy {
	case runtime.SupplementalGroupsPolicy_Merge:
	case runtime.SupplementalGroupsPolicy_Strict:
		u.Strict = true
	default:
		return u, invalid("%s.supplemental_groups_policy: %d is not Merge or Strict", field, policy)
	}
	return u, nil
}

// posixID takes what Kubernetes takes: 0 to 2³¹-1.
func posixID(field string, id int64) (uint32, error) {
	if id < 0 || id > math.MaxInt32 {
		return 0, invalid("%s: %d is not between 0 and %d", field, id, math.MaxInt32)
	}
	return uint32(id), nil
}

// profile reads a security profile, in its old form too.
func profile(field string, p *runtime.SecurityProfile, old string, unset container.ProfileKind) (container.Profile, error) {
	if p == nil {
		return oldProfile(field, old, unset)
	}
	switch p.ProfileType {
	case runtime.SecurityProfile_RuntimeDefault:
		return container.Profile{Kind: container.ProfileDefault}, nil
	case runtime.SecurityProfile_Unconfined:
		return container.Profile{Kind: container.ProfileUnconfined}, nil
	case runtime.SecurityProfile_Localhost:
		// Some clients write it as in the old field.
		ref := strings.TrimPrefix(p.LocalhostRef, "localhost/")
		if ref == "" || hasNUL(ref) {
			return container.Profile{}, invalid("%s: a profile of the host needs localhost_ref", field)
		}
		return container.Profile{Kind: container.ProfileLocalhost, Path: ref}, nil
	}
	return container.Profile{}, invalid("%s: unknown profile type %d", field, p.ProfileType)
}

func oldProfile(field, old string, unset container.ProfileKind) (container.Profile, error) {
	switch old {
	case "":
		return container.Profile{Kind: unset}, nil
	case "runtime/default", "docker/default":
		return container.Profile{Kind: container.ProfileDefault}, nil
	case "unconfined":
		return container.Profile{Kind: container.ProfileUnconfined}, nil
	}
	if ref, ok := strings.CutPrefix(old, "localhost/"); ok && ref != "" && !hasNUL(ref) {
		return container.Profile{Kind: container.ProfileLocalhost, Path: ref}, nil
	}
	return container.Profile{}, invalid("%s: %q is not runtime/default, unconfined or localhost/<profile>", field, old)
}

// selinuxLabel is user:role:type:level, empty where nothing is set.
func selinuxLabel(field string, o *runtime.SELinuxOption) (string, error) {
	label := strings.Join([]string{o.GetUser(), o.GetRole(), o.GetType(), o.GetLevel()}, ":")
	if !labelPattern.MatchString(label) {
		return "", invalid("%s.selinux_options: %q is not a label", field, label)
	}
	if label == ":::" {
		return "", nil
	}
	return label, nil
}

// containerNamespaces checks a container's namespaces against its pod's. Without options they are the pod's.
func containerNamespaces(field string, o *runtime.NamespaceOption, pod sandbox.Status, s *container.Security) error {
	s.HostNetwork, s.HostIPC, s.HostPID, s.SharedPID = pod.Config.HostNetwork, pod.Config.HostIPC, pod.Config.HostPID, pod.Config.SharedPID
	if o == nil {
		return nil
	}
	user, err := userNamespace(field, o.UsernsOptions)
	if err != nil {
		return err
	}
	if o.UsernsOptions != nil && !reflect.DeepEqual(user, pod.Config.User) {
		return invalid("%s.userns_options: a container has the user namespace of its pod, and this asks for another one", field)
	}
	network, err := hostNamespace(field+".network", o.Network)
	if err != nil {
		return err
	}
	ipc, err := hostNamespace(field+".ipc", o.Ipc)
	if err != nil {
		return err
	}
	if network != pod.Config.HostNetwork || ipc != pod.Config.HostIPC {
		return invalid("%s: network and IPC namespaces are the pod's; ask for the host's when the pod is made", field)
	}
	if o.TargetId != "" && o.Pid != runtime.NamespaceMode_TARGET {
		return invalid("%s: target_id needs pid mode TARGET", field)
	}
	s.HostPID, s.SharedPID = false, false
	switch o.Pid {
	case runtime.NamespaceMode_POD:
		s.SharedPID = true
		if !pod.Config.SharedPID {
			return invalid("%s.pid: the pod was not made with a PID namespace for all of its containers", field)
		}
	case runtime.NamespaceMode_CONTAINER:
	case runtime.NamespaceMode_NODE:
		s.HostPID = true
		if !pod.Config.HostPID {
			return invalid("%s.pid: the pod was not made with the host's PID namespace", field)
		}
	case runtime.NamespaceMode_TARGET:
		if o.TargetId == "" || len(o.TargetId) > maxName || strings.ContainsAny(o.TargetId, "/\x00\n") {
			return invalid("%s.target_id: %q is not the id of a target container", field, o.TargetId[:min(len(o.TargetId), maxName)])
		}
		s.TargetPID = o.TargetId
	default:
		return invalid("%s.pid: unknown mode %d", field, o.Pid)
	}
	return nil
}
