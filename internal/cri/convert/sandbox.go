package convert

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/sandbox"
)

// maxHostname is what the kernel takes.
const maxHostname = 64

var (
	hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$`)
	sysctlPattern   = regexp.MustCompile(`^[a-z0-9][-a-z0-9_]*([./][a-z0-9*][-a-z0-9_*]*)+$`)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrNotImplemented)...)
}

// Sandbox validates a sandbox's configuration and converts it. The handler is not chosen yet.
func Sandbox(c *runtime.PodSandboxConfig) (sandbox.Config, error) {
	if c == nil {
		return sandbox.Config{}, invalid("the request has no config")
	}
	if c.Windows != nil {
		return sandbox.Config{}, unsupported("config.windows: this node runs Linux pods")
	}
	if err := validateSandboxMetadata(c.Metadata); err != nil {
		return sandbox.Config{}, err
	}
	cfg := sandbox.Config{
		Identity: sandbox.Identity{Name: c.Metadata.Name, Namespace: c.Metadata.Namespace, UID: c.Metadata.Uid, Attempt: c.Metadata.Attempt},
		Hostname: c.Hostname, LogDir: c.LogDirectory,
		Labels: maps.Clone(c.Labels), Annotations: maps.Clone(c.Annotations),
	}
	if err := validatePairs("config", c.Labels, c.Annotations); err != nil {
		return sandbox.Config{}, err
	}
	if c.Hostname != "" && (len(c.Hostname) > maxHostname || !hostnamePattern.MatchString(c.Hostname)) {
		return sandbox.Config{}, invalid("config.hostname: %q is not a host name of at most %d letters, digits, '-' and '.'", c.Hostname, maxHostname)
	}
	if c.LogDirectory != "" && (!filepath.IsAbs(c.LogDirectory) || hasNUL(c.LogDirectory)) {
		return sandbox.Config{}, invalid("config.log_directory: %q is not an absolute path", c.LogDirectory)
	}
	var err error
	if cfg.DNS, err = dnsConfig(c.DnsConfig); err != nil {
		return sandbox.Config{}, err
	}
	if cfg.Ports, err = portMappings(c.PortMappings); err != nil {
		return sandbox.Config{}, err
	}
	if err := linuxSandboxConfig(c.GetLinux(), &cfg); err != nil {
		return sandbox.Config{}, err
	}
	for _, p := range cfg.Ports {
		if cfg.HostNetwork && p.HostPort != p.ContainerPort {
			return sandbox.Config{}, invalid("config.port_mappings: host port %d cannot lead to port %d of a pod that has the host's network", p.HostPort, p.ContainerPort)
		}
	}
	if cfg.Hostname == "" && !cfg.HostNetwork {
		// A pod always has a name of its own: the kubelet sends it, other clients may leave it out.
		cfg.Hostname = truncatedHostname(c.Metadata.Name)
	}
	return cfg, nil
}

func validateSandboxMetadata(m *runtime.PodSandboxMetadata) error {
	if m == nil {
		return invalid("config.metadata is missing: it names the pod")
	}
	if err := validateName("config.metadata.name", m.Name); err != nil {
		return err
	}
	if err := validateName("config.metadata.namespace", m.Namespace); err != nil {
		return err
	}
	return validateName("config.metadata.uid", m.Uid)
}

// truncatedHostname makes a host name of a pod's name, which has at most 253 characters of the same kinds.
func truncatedHostname(name string) string {
	name = name[:min(len(name), maxHostname-1)]
	for name != "" && !hostnamePattern.MatchString(name) {
		name = name[:len(name)-1]
	}
	if name == "" {
		return "pod"
	}
	return name
}

func dnsConfig(c *runtime.DNSConfig) (*sandbox.DNS, error) {
	if c == nil {
		return nil, nil
	}
	for _, server := range c.Servers {
		if _, err := netip.ParseAddr(server); err != nil {
			return nil, invalid("config.dns_config.servers: %q is not an IP address", server)
		}
	}
	for _, word := range append(append([]string{}, c.Searches...), c.Options...) {
		if word == "" || len(word) > 1024 || hasSpace(word) {
			return nil, invalid("config.dns_config: %q is not one word", word)
		}
	}
	return &sandbox.DNS{Servers: c.Servers, Searches: c.Searches, Options: c.Options}, nil
}

func portMappings(mappings []*runtime.PortMapping) ([]sandbox.Port, error) {
	var ports []sandbox.Port
	for i, m := range mappings {
		protocol, ok := map[runtime.Protocol]string{
			runtime.Protocol_TCP: "tcp", runtime.Protocol_UDP: "udp", runtime.Protocol_SCTP: "sctp",
		}[m.GetProtocol()]
		switch {
		case m == nil:
			return nil, invalid("config.port_mappings[%d] is empty", i)
		case !ok:
			return nil, invalid("config.port_mappings[%d]: unknown protocol %d", i, m.Protocol)
		case m.ContainerPort < 1 || m.ContainerPort > 65535:
			return nil, invalid("config.port_mappings[%d]: container port %d is not between 1 and 65535", i, m.ContainerPort)
		case m.HostPort < 0 || m.HostPort > 65535:
			return nil, invalid("config.port_mappings[%d]: host port %d is not between 0, which is none, and 65535", i, m.HostPort)
		}
		if m.HostIp != "" {
			if _, err := netip.ParseAddr(m.HostIp); err != nil {
				return nil, invalid("config.port_mappings[%d]: host IP %q is not an IP address", i, m.HostIp)
			}
		}
		if m.HostPort == 0 {
			continue // nothing leads to it from the host: it is only said that somebody listens there
		}
		ports = append(ports, sandbox.Port{
			Protocol: protocol, ContainerPort: uint16(m.ContainerPort), HostPort: uint16(m.HostPort), HostIP: m.HostIp,
		})
	}
	return ports, nil
}

func linuxSandboxConfig(c *runtime.LinuxPodSandboxConfig, cfg *sandbox.Config) error {
	for key, value := range c.GetSysctls() {
		if !sysctlPattern.MatchString(key) || hasNUL(value) || len(value) > 4096 {
			return invalid("config.linux.sysctls: %q = %q is not a sysctl such as net.ipv4.ip_forward", key, value)
		}
	}
	if hasNUL(c.GetCgroupParent()) {
		return invalid("config.linux.cgroup_parent: %q is not a path", c.GetCgroupParent())
	}
	cfg.CgroupParent, cfg.Sysctls = c.GetCgroupParent(), maps.Clone(c.GetSysctls())
	var err error
	if cfg.Overhead, err = SandboxResources("config.linux.overhead", c.GetOverhead()); err != nil {
		return err
	}
	if cfg.Resources, err = SandboxResources("config.linux.resources", c.GetResources()); err != nil {
		return err
	}
	security := c.GetSecurityContext()
	if security.GetRunAsGroup() != nil && security.GetRunAsUser() == nil {
		return invalid("config.linux.security_context: run_as_group needs run_as_user")
	}
	cfg.Privileged = security.GetPrivileged()
	if cfg.SELinuxLabel, err = selinuxLabel("config.linux.security_context", security.GetSelinuxOptions()); err != nil {
		return err
	}
	return sandboxNamespaces(security.GetNamespaceOptions(), cfg)
}

func sandboxNamespaces(o *runtime.NamespaceOption, cfg *sandbox.Config) error {
	const field = "config.linux.security_context.namespace_options"
	var err error
	if cfg.User, err = userNamespace(field, o.GetUsernsOptions()); err != nil {
		return err
	}
	if o.GetTargetId() != "" || o.GetPid() == runtime.NamespaceMode_TARGET {
		return invalid("%s: a pod cannot have the PID namespace of a container; target_id is for containers", field)
	}
	if cfg.HostNetwork, err = hostNamespace(field+".network", o.GetNetwork()); err != nil {
		return err
	}
	if cfg.HostIPC, err = hostNamespace(field+".ipc", o.GetIpc()); err != nil {
		return err
	}
	switch o.GetPid() {
	case runtime.NamespaceMode_NODE:
		cfg.HostPID = true
	case runtime.NamespaceMode_POD:
		cfg.SharedPID = true
	case runtime.NamespaceMode_CONTAINER:
	default:
		return invalid("%s.pid: unknown mode %d", field, o.GetPid())
	}
	return nil
}

// hostNamespace is for namespaces that are the pod's or the node's.
func hostNamespace(field string, mode runtime.NamespaceMode) (host bool, err error) {
	switch mode {
	case runtime.NamespaceMode_POD:
		return false, nil
	case runtime.NamespaceMode_NODE:
		return true, nil
	}
	return false, invalid("%s: mode %s is not POD or NODE", field, mode)
}

// userNamespace is nil for the host's. The kubelet gives each pod one range of ids.
func userNamespace(field string, o *runtime.UserNamespace) (*sandbox.UserNamespace, error) {
	if o == nil || o.Mode == runtime.NamespaceMode_NODE {
		if len(o.GetUids()) > 0 || len(o.GetGids()) > 0 {
			return nil, invalid("%s.userns_options: mappings without a user namespace of the pod", field)
		}
		return nil, nil
	}
	if o.Mode != runtime.NamespaceMode_POD {
		return nil, invalid("%s.userns_options: mode %s is not POD or NODE", field, o.Mode)
	}
	user := &sandbox.UserNamespace{UIDs: idMappings(o.Uids), GIDs: idMappings(o.Gids)}
	for name, ids := range map[string][]specs.LinuxIDMapping{"uids": user.UIDs, "gids": user.GIDs} {
		switch {
		case len(ids) != 1:
			return nil, invalid("%s.userns_options.%s: %d mappings, and a pod's user namespace has exactly one", field, name, len(ids))
		case ids[0].ContainerID != 0:
			return nil, invalid("%s.userns_options.%s: the mapping begins at %d in the pod, and its root, 0, must be mapped", field, name, ids[0].ContainerID)
		case ids[0].Size == 0:
			return nil, invalid("%s.userns_options.%s: the mapping is empty", field, name)
		}
	}
	return user, nil
}

// SandboxResources converts what a pod as a whole, or the runtime beside it, may use. field names it in errors, which are
// InvalidArgument.
func SandboxResources(field string, r *runtime.LinuxContainerResources) (sandbox.Resources, error) {
	if r.GetCpuPeriod() < 0 || r.GetCpuShares() < 0 || r.GetMemoryLimitInBytes() < 0 || r.GetCpuQuota() < -1 {
		return sandbox.Resources{}, invalid("%s: a limit is negative", field)
	}
	return sandbox.Resources{
		CPUPeriod: r.GetCpuPeriod(), CPUQuota: r.GetCpuQuota(), CPUShares: r.GetCpuShares(), MemoryLimit: r.GetMemoryLimitInBytes(),
	}, nil
}
