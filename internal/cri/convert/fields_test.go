package convert

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/sandbox"
)

// verdict is what becomes of a field. Exactly one of the three is set.
type verdict[C any] struct {
	// carried sets the field to something that must change the converted configuration.
	carried func(C)
	// refused sets it to something that must be refused.
	refused func(C)
	// ignored says why the field changes nothing.
	ignored string
}

type (
	podVerdict = verdict[*runtime.PodSandboxConfig]
	ctrVerdict = verdict[*runtime.ContainerConfig]
)

const (
	noPauseProcess = "it is about the sandbox's own process, and a microVM pod has none"
	sizingOnly     = "the pod's resources size the virtual machine, in processors and memory; limits are the containers'"
)

func podSecurity(c *runtime.PodSandboxConfig) *runtime.LinuxSandboxSecurityContext {
	return c.Linux.SecurityContext
}

func podNamespaces(c *runtime.PodSandboxConfig) *runtime.NamespaceOption {
	return c.Linux.SecurityContext.NamespaceOptions
}

var podFields = map[string]podVerdict{
	"PodSandboxConfig.metadata":       {carried: func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "other" }},
	"PodSandboxConfig.hostname":       {carried: func(c *runtime.PodSandboxConfig) { c.Hostname = "other" }},
	"PodSandboxConfig.log_directory":  {carried: func(c *runtime.PodSandboxConfig) { c.LogDirectory = "/other" }},
	"PodSandboxConfig.dns_config":     {carried: func(c *runtime.PodSandboxConfig) { c.DnsConfig = &runtime.DNSConfig{} }},
	"PodSandboxConfig.port_mappings":  {carried: func(c *runtime.PodSandboxConfig) { c.PortMappings = append(c.PortMappings, port(81, 8081)) }},
	"PodSandboxConfig.labels":         {carried: func(c *runtime.PodSandboxConfig) { c.Labels = map[string]string{"a": "z"} }},
	"PodSandboxConfig.annotations":    {carried: func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{"a": "z"} }},
	"PodSandboxConfig.linux":          {carried: func(c *runtime.PodSandboxConfig) { c.Linux = nil }},
	"PodSandboxConfig.windows":        {refused: func(c *runtime.PodSandboxConfig) { c.Windows = &runtime.WindowsPodSandboxConfig{} }},
	"PodSandboxMetadata.name":         {carried: func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "other" }},
	"PodSandboxMetadata.uid":          {carried: func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = "other" }},
	"PodSandboxMetadata.namespace":    {carried: func(c *runtime.PodSandboxConfig) { c.Metadata.Namespace = "other" }},
	"PodSandboxMetadata.attempt":      {carried: func(c *runtime.PodSandboxConfig) { c.Metadata.Attempt = 9 }},
	"DNSConfig.servers":               {carried: func(c *runtime.PodSandboxConfig) { c.DnsConfig.Servers = []string{"9.9.9.9"} }},
	"DNSConfig.searches":              {carried: func(c *runtime.PodSandboxConfig) { c.DnsConfig.Searches = []string{"a.example"} }},
	"DNSConfig.options":               {carried: func(c *runtime.PodSandboxConfig) { c.DnsConfig.Options = []string{"ndots:9"} }},
	"PortMapping.protocol":            {carried: func(c *runtime.PodSandboxConfig) { c.PortMappings[0].Protocol = runtime.Protocol_SCTP }},
	"PortMapping.container_port":      {carried: func(c *runtime.PodSandboxConfig) { c.PortMappings[0].ContainerPort = 99 }},
	"PortMapping.host_port":           {carried: func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostPort = 99 }},
	"PortMapping.host_ip":             {carried: func(c *runtime.PodSandboxConfig) { c.PortMappings[0].HostIp = "::1" }},
	"LinuxPodSandboxConfig.sysctls":   {carried: func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"} }},
	"LinuxPodSandboxConfig.overhead":  {carried: func(c *runtime.PodSandboxConfig) { c.Linux.Overhead = nil }},
	"LinuxPodSandboxConfig.resources": {carried: func(c *runtime.PodSandboxConfig) { c.Linux.Resources = nil }},
	"LinuxPodSandboxConfig.cgroup_parent": {
		carried: func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/other" },
	},
	"LinuxPodSandboxConfig.security_context": {
		carried: func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext = nil },
	},
	"LinuxSandboxSecurityContext.namespace_options": {
		carried: func(c *runtime.PodSandboxConfig) { podSecurity(c).NamespaceOptions = nil },
	},
	"LinuxSandboxSecurityContext.selinux_options": {
		carried: func(c *runtime.PodSandboxConfig) {
			podSecurity(c).SelinuxOptions = &runtime.SELinuxOption{Level: "s0:c1,c2"}
		},
	},
	"SELinuxOption.user":                                     {carried: func(c *runtime.PodSandboxConfig) { podSecurity(c).SelinuxOptions = &runtime.SELinuxOption{User: "u"} }},
	"SELinuxOption.role":                                     {carried: func(c *runtime.PodSandboxConfig) { podSecurity(c).SelinuxOptions = &runtime.SELinuxOption{Role: "r"} }},
	"SELinuxOption.type":                                     {carried: func(c *runtime.PodSandboxConfig) { podSecurity(c).SelinuxOptions = &runtime.SELinuxOption{Type: "t"} }},
	"SELinuxOption.level":                                    {carried: func(c *runtime.PodSandboxConfig) { podSecurity(c).SelinuxOptions = &runtime.SELinuxOption{Level: "s0"} }},
	"LinuxSandboxSecurityContext.run_as_user":                {ignored: noPauseProcess},
	"LinuxSandboxSecurityContext.run_as_group":               {ignored: noPauseProcess},
	"LinuxSandboxSecurityContext.readonly_rootfs":            {ignored: noPauseProcess},
	"LinuxSandboxSecurityContext.supplemental_groups":        {ignored: "each container is given them too, in its own security context"},
	"LinuxSandboxSecurityContext.supplemental_groups_policy": {ignored: "each container is given it too, in its own security context"},
	"LinuxSandboxSecurityContext.privileged":                 {carried: func(c *runtime.PodSandboxConfig) { podSecurity(c).Privileged = false }},
	"LinuxSandboxSecurityContext.seccomp":                    {ignored: noPauseProcess},
	"LinuxSandboxSecurityContext.apparmor":                   {ignored: noPauseProcess},
	"LinuxSandboxSecurityContext.seccomp_profile_path":       {ignored: noPauseProcess},
	"NamespaceOption.network": {carried: func(c *runtime.PodSandboxConfig) {
		c.PortMappings, podNamespaces(c).Network = nil, runtime.NamespaceMode_NODE
	}},
	"NamespaceOption.pid":                                {carried: func(c *runtime.PodSandboxConfig) { podNamespaces(c).Pid = runtime.NamespaceMode_NODE }},
	"NamespaceOption.ipc":                                {carried: func(c *runtime.PodSandboxConfig) { podNamespaces(c).Ipc = runtime.NamespaceMode_NODE }},
	"NamespaceOption.target_id":                          {refused: func(c *runtime.PodSandboxConfig) { podNamespaces(c).TargetId = "abc" }},
	"NamespaceOption.userns_options":                     {carried: func(c *runtime.PodSandboxConfig) { podNamespaces(c).UsernsOptions = ownUsers() }},
	"UserNamespace.mode":                                 {carried: func(c *runtime.PodSandboxConfig) { podNamespaces(c).UsernsOptions = ownUsers() }},
	"UserNamespace.uids":                                 {carried: func(c *runtime.PodSandboxConfig) { podNamespaces(c).UsernsOptions = ownUsers() }},
	"UserNamespace.gids":                                 {carried: func(c *runtime.PodSandboxConfig) { podNamespaces(c).UsernsOptions = ownUsers() }},
	"LinuxContainerResources.cpu_period":                 {carried: func(c *runtime.PodSandboxConfig) { c.Linux.Overhead.CpuPeriod = 9000 }},
	"LinuxContainerResources.cpu_quota":                  {carried: func(c *runtime.PodSandboxConfig) { c.Linux.Overhead.CpuQuota = 9000 }},
	"LinuxContainerResources.cpu_shares":                 {carried: func(c *runtime.PodSandboxConfig) { c.Linux.Resources.CpuShares = 9 }},
	"LinuxContainerResources.memory_limit_in_bytes":      {carried: func(c *runtime.PodSandboxConfig) { c.Linux.Resources.MemoryLimitInBytes = 9 }},
	"LinuxContainerResources.oom_score_adj":              {ignored: sizingOnly},
	"LinuxContainerResources.cpuset_cpus":                {ignored: sizingOnly},
	"LinuxContainerResources.cpuset_mems":                {ignored: sizingOnly},
	"LinuxContainerResources.hugepage_limits":            {ignored: sizingOnly},
	"LinuxContainerResources.unified":                    {ignored: sizingOnly},
	"LinuxContainerResources.memory_swap_limit_in_bytes": {ignored: sizingOnly},
}

func port(container, host int32) *runtime.PortMapping {
	return &runtime.PortMapping{ContainerPort: container, HostPort: host}
}

// ownUsers is a user namespace of the pod's own.
func ownUsers() *runtime.UserNamespace {
	ids := []*runtime.IDMapping{{HostId: 65536, Length: 65536}}
	return &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func fullPod() *runtime.PodSandboxConfig {
	c := podConfig("p")
	c.DnsConfig = &runtime.DNSConfig{Servers: []string{"1.1.1.1"}, Searches: []string{"example"}, Options: []string{"ndots:5"}}
	c.PortMappings = []*runtime.PortMapping{port(80, 8080)}
	c.Linux = &runtime.LinuxPodSandboxConfig{
		CgroupParent: "/kubepods/p", Sysctls: map[string]string{"net.ipv4.ip_forward": "0"},
		Overhead:  &runtime.LinuxContainerResources{CpuPeriod: 1000, CpuQuota: 1000, CpuShares: 2, MemoryLimitInBytes: 3},
		Resources: &runtime.LinuxContainerResources{CpuPeriod: 1000, CpuQuota: 1000, CpuShares: 2, MemoryLimitInBytes: 3},
		SecurityContext: &runtime.LinuxSandboxSecurityContext{
			Privileged: true, NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER},
		},
	}
	return c
}

func security(c *runtime.ContainerConfig) *runtime.LinuxContainerSecurityContext {
	return c.Linux.SecurityContext
}

var ctrFields = map[string]ctrVerdict{
	"ContainerConfig.metadata":       {carried: func(c *runtime.ContainerConfig) { c.Metadata.Name = "other" }},
	"ContainerConfig.image":          {carried: func(c *runtime.ContainerConfig) { c.Image.Image = "other" }},
	"ContainerConfig.command":        {carried: func(c *runtime.ContainerConfig) { c.Command = []string{"other"} }},
	"ContainerConfig.args":           {carried: func(c *runtime.ContainerConfig) { c.Args = []string{"other"} }},
	"ContainerConfig.working_dir":    {carried: func(c *runtime.ContainerConfig) { c.WorkingDir = "/other" }},
	"ContainerConfig.envs":           {carried: func(c *runtime.ContainerConfig) { c.Envs = nil }},
	"ContainerConfig.mounts":         {carried: func(c *runtime.ContainerConfig) { c.Mounts = nil }},
	"ContainerConfig.devices":        {carried: func(c *runtime.ContainerConfig) { c.Devices = nil }},
	"ContainerConfig.labels":         {carried: func(c *runtime.ContainerConfig) { c.Labels = nil }},
	"ContainerConfig.annotations":    {carried: func(c *runtime.ContainerConfig) { c.Annotations = map[string]string{"a": "z"} }},
	"ContainerConfig.log_path":       {carried: func(c *runtime.ContainerConfig) { c.LogPath = "other.log" }},
	"ContainerConfig.stdin":          {carried: func(c *runtime.ContainerConfig) { c.Stdin, c.StdinOnce = false, false }},
	"ContainerConfig.stdin_once":     {carried: func(c *runtime.ContainerConfig) { c.StdinOnce = false }},
	"ContainerConfig.tty":            {carried: func(c *runtime.ContainerConfig) { c.Tty = true }},
	"ContainerConfig.linux":          {carried: func(c *runtime.ContainerConfig) { c.Linux = nil }},
	"ContainerConfig.windows":        {refused: func(c *runtime.ContainerConfig) { c.Windows = &runtime.WindowsContainerConfig{} }},
	"ContainerConfig.CDI_devices":    {carried: func(c *runtime.ContainerConfig) { c.CDIDevices = nil }},
	"ContainerConfig.stop_signal":    {carried: func(c *runtime.ContainerConfig) { c.StopSignal = runtime.Signal_SIGNAL_SIGHUP }},
	"ContainerMetadata.name":         {carried: func(c *runtime.ContainerConfig) { c.Metadata.Name = "other" }},
	"ContainerMetadata.attempt":      {carried: func(c *runtime.ContainerConfig) { c.Metadata.Attempt = 9 }},
	"ImageSpec.image":                {carried: func(c *runtime.ContainerConfig) { c.Image.Image = "other" }},
	"ImageSpec.annotations":          {ignored: "they help to choose a platform when pulling; containers run the platform of the node"},
	"ImageSpec.user_specified_image": {carried: func(c *runtime.ContainerConfig) { c.Image.UserSpecifiedImage = "other" }},
	"ImageSpec.runtime_handler":      {ignored: "a container's handler is its pod's"},
	"ImageSpec.image_ref":            {ignored: "it reports the digest of a volume's image; the image is the one that is named"},
	"KeyValue.key":                   {carried: func(c *runtime.ContainerConfig) { c.Envs[0].Key = "OTHER" }},
	"KeyValue.value":                 {carried: func(c *runtime.ContainerConfig) { c.Envs[0].Value = []byte("other") }},
	"Mount.container_path":           {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].ContainerPath = "/other" }},
	"Mount.host_path":                {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].HostPath = "/other" }},
	"Mount.readonly":                 {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].Readonly = false }},
	"Mount.selinux_relabel":          {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].SelinuxRelabel = true }},
	"Mount.uidMappings":              {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].UidMappings = []*runtime.IDMapping{{Length: 1}} }},
	"Mount.gidMappings":              {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].GidMappings = []*runtime.IDMapping{{Length: 1}} }},
	"Mount.recursive_read_only":      {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].RecursiveReadOnly = true }},
	"Mount.image":                    {carried: func(c *runtime.ContainerConfig) { c.Mounts[1].Image.Image = "other" }},
	"Mount.image_sub_path":           {carried: func(c *runtime.ContainerConfig) { c.Mounts[1].ImageSubPath = "other" }},
	"Mount.mount_options":            {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].MountOptions = []string{"noexec"} }},
	"Mount.propagation": {carried: func(c *runtime.ContainerConfig) {
		c.Mounts[0].Propagation = runtime.MountPropagation_PROPAGATION_BIDIRECTIONAL
	}},
	"IDMapping.host_id":                                  {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].UidMappings = []*runtime.IDMapping{{HostId: 1}} }},
	"IDMapping.container_id":                             {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].UidMappings = []*runtime.IDMapping{{ContainerId: 1}} }},
	"IDMapping.length":                                   {carried: func(c *runtime.ContainerConfig) { c.Mounts[0].UidMappings = []*runtime.IDMapping{{Length: 1}} }},
	"Device.container_path":                              {carried: func(c *runtime.ContainerConfig) { c.Devices[0].ContainerPath = "/dev/other" }},
	"Device.host_path":                                   {carried: func(c *runtime.ContainerConfig) { c.Devices[0].HostPath = "/dev/other" }},
	"Device.permissions":                                 {carried: func(c *runtime.ContainerConfig) { c.Devices[0].Permissions = "m" }},
	"CDIDevice.name":                                     {carried: func(c *runtime.ContainerConfig) { c.CDIDevices[0].Name = "v.com/c=other" }},
	"LinuxContainerConfig.resources":                     {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources = nil }},
	"LinuxContainerConfig.security_context":              {carried: func(c *runtime.ContainerConfig) { c.Linux.SecurityContext = nil }},
	"LinuxContainerResources.cpu_period":                 {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.CpuPeriod = 9000 }},
	"LinuxContainerResources.cpu_quota":                  {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.CpuQuota = 9000 }},
	"LinuxContainerResources.cpu_shares":                 {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.CpuShares = 9 }},
	"LinuxContainerResources.memory_limit_in_bytes":      {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 9 }},
	"LinuxContainerResources.oom_score_adj":              {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 9 }},
	"LinuxContainerResources.cpuset_cpus":                {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.CpusetCpus = "0-1" }},
	"LinuxContainerResources.cpuset_mems":                {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.CpusetMems = "0" }},
	"LinuxContainerResources.memory_swap_limit_in_bytes": {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.MemorySwapLimitInBytes = 9 }},
	"LinuxContainerResources.unified":                    {carried: func(c *runtime.ContainerConfig) { c.Linux.Resources.Unified = map[string]string{"memory.high": "1"} }},
	"LinuxContainerResources.hugepage_limits": {carried: func(c *runtime.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*runtime.HugepageLimit{{PageSize: "2MB"}}
	}},
	"HugepageLimit.page_size": {carried: func(c *runtime.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*runtime.HugepageLimit{{PageSize: "1GB"}}
	}},
	"HugepageLimit.limit": {carried: func(c *runtime.ContainerConfig) {
		c.Linux.Resources.HugepageLimits = []*runtime.HugepageLimit{{PageSize: "1GB", Limit: 9}}
	}},
	"LinuxContainerSecurityContext.capabilities":        {carried: func(c *runtime.ContainerConfig) { security(c).Capabilities = nil }},
	"LinuxContainerSecurityContext.privileged":          {carried: func(c *runtime.ContainerConfig) { security(c).Privileged = true }},
	"LinuxContainerSecurityContext.namespace_options":   {carried: func(c *runtime.ContainerConfig) { security(c).NamespaceOptions.Pid = runtime.NamespaceMode_CONTAINER }},
	"LinuxContainerSecurityContext.selinux_options":     {carried: func(c *runtime.ContainerConfig) { security(c).SelinuxOptions = nil }},
	"LinuxContainerSecurityContext.run_as_user":         {carried: func(c *runtime.ContainerConfig) { security(c).RunAsUser.Value = 9 }},
	"LinuxContainerSecurityContext.run_as_group":        {carried: func(c *runtime.ContainerConfig) { security(c).RunAsGroup.Value = 9 }},
	"LinuxContainerSecurityContext.run_as_username":     {carried: func(c *runtime.ContainerConfig) { security(c).RunAsUser, security(c).RunAsUsername = nil, "joe" }},
	"LinuxContainerSecurityContext.readonly_rootfs":     {carried: func(c *runtime.ContainerConfig) { security(c).ReadonlyRootfs = true }},
	"LinuxContainerSecurityContext.supplemental_groups": {carried: func(c *runtime.ContainerConfig) { security(c).SupplementalGroups = []int64{9} }},
	"LinuxContainerSecurityContext.no_new_privs":        {carried: func(c *runtime.ContainerConfig) { security(c).NoNewPrivs = true }},
	"LinuxContainerSecurityContext.masked_paths":        {carried: func(c *runtime.ContainerConfig) { security(c).MaskedPaths = []string{"/x"} }},
	"LinuxContainerSecurityContext.readonly_paths":      {carried: func(c *runtime.ContainerConfig) { security(c).ReadonlyPaths = []string{"/x"} }},
	"LinuxContainerSecurityContext.seccomp":             {carried: func(c *runtime.ContainerConfig) { security(c).Seccomp = nil }},
	"LinuxContainerSecurityContext.apparmor":            {carried: func(c *runtime.ContainerConfig) { security(c).Apparmor = nil }},
	"LinuxContainerSecurityContext.apparmor_profile": {carried: func(c *runtime.ContainerConfig) {
		security(c).Apparmor, security(c).ApparmorProfile = nil, "localhost/x"
	}},
	"LinuxContainerSecurityContext.seccomp_profile_path": {carried: func(c *runtime.ContainerConfig) {
		security(c).Seccomp, security(c).SeccompProfilePath = nil, "localhost//x"
	}},
	"LinuxContainerSecurityContext.supplemental_groups_policy": {carried: func(c *runtime.ContainerConfig) {
		security(c).SupplementalGroupsPolicy = runtime.SupplementalGroupsPolicy_Strict
	}},
	"Capability.add_capabilities":  {carried: func(c *runtime.ContainerConfig) { security(c).Capabilities.AddCapabilities = []string{"SYS_TIME"} }},
	"Capability.drop_capabilities": {carried: func(c *runtime.ContainerConfig) { security(c).Capabilities.DropCapabilities = []string{"ALL"} }},
	"Capability.add_ambient_capabilities": {carried: func(c *runtime.ContainerConfig) {
		security(c).Capabilities.AddAmbientCapabilities = []string{"CAP_CHOWN"}
	}},
	"SecurityProfile.profile_type": {carried: func(c *runtime.ContainerConfig) {
		security(c).Seccomp.ProfileType = runtime.SecurityProfile_RuntimeDefault
	}},
	"SecurityProfile.localhost_ref": {carried: func(c *runtime.ContainerConfig) { security(c).Seccomp.LocalhostRef = "/other" }},
	"SELinuxOption.user":            {carried: func(c *runtime.ContainerConfig) { security(c).SelinuxOptions.User = "u" }},
	"SELinuxOption.role":            {carried: func(c *runtime.ContainerConfig) { security(c).SelinuxOptions.Role = "r" }},
	"SELinuxOption.type":            {carried: func(c *runtime.ContainerConfig) { security(c).SelinuxOptions.Type = "t" }},
	"SELinuxOption.level":           {carried: func(c *runtime.ContainerConfig) { security(c).SelinuxOptions.Level = "s1" }},
	"NamespaceOption.network":       {refused: func(c *runtime.ContainerConfig) { security(c).NamespaceOptions.Network = runtime.NamespaceMode_NODE }},
	"NamespaceOption.pid":           {carried: func(c *runtime.ContainerConfig) { security(c).NamespaceOptions.Pid = runtime.NamespaceMode_CONTAINER }},
	"NamespaceOption.ipc":           {refused: func(c *runtime.ContainerConfig) { security(c).NamespaceOptions.Ipc = runtime.NamespaceMode_NODE }},
	"NamespaceOption.target_id": {carried: func(c *runtime.ContainerConfig) {
		security(c).NamespaceOptions.Pid, security(c).NamespaceOptions.TargetId = runtime.NamespaceMode_TARGET, "abc"
	}},
	"NamespaceOption.userns_options": {refused: func(c *runtime.ContainerConfig) {
		security(c).NamespaceOptions.UsernsOptions = &runtime.UserNamespace{}
	}},
}

func fullContainer() *runtime.ContainerConfig {
	c := ctrConfig("c")
	c.Envs = []*runtime.KeyValue{{Key: "A", Value: []byte("b=c")}}
	c.Mounts = []*runtime.Mount{
		{ContainerPath: "/a", HostPath: "/b", Readonly: true},
		{ContainerPath: "/i", Readonly: true, Image: &runtime.ImageSpec{Image: "x"}, ImageSubPath: "y"},
	}
	c.Devices = []*runtime.Device{{ContainerPath: "/dev/a", HostPath: "/dev/b", Permissions: "rw"}}
	c.CDIDevices = []*runtime.CDIDevice{{Name: "v.com/c=d"}}
	c.Stdin, c.StdinOnce = true, true
	c.Linux = &runtime.LinuxContainerConfig{
		Resources: &runtime.LinuxContainerResources{CpuPeriod: 1000, CpuQuota: 1000, CpuShares: 2, MemoryLimitInBytes: 3},
		SecurityContext: &runtime.LinuxContainerSecurityContext{
			Capabilities: &runtime.Capability{AddCapabilities: []string{"NET_ADMIN"}}, NamespaceOptions: &runtime.NamespaceOption{},
			SelinuxOptions: &runtime.SELinuxOption{Level: "s0"},
			RunAsUser:      &runtime.Int64Value{Value: 1}, RunAsGroup: &runtime.Int64Value{Value: 2},
			Seccomp:  &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/p"},
			Apparmor: &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined},
		},
	}
	return c
}

func testPod() sandbox.Status {
	return sandbox.Status{ID: "pod", Config: sandbox.Config{LogDir: "/logs", Privileged: true, Namespaces: sandbox.Namespaces{SharedPID: true}}}
}

// TestEveryFieldHasAVerdict walks the messages, so that a field that a new version of CRI brings cannot be
// ignored silently.
func TestEveryFieldHasAVerdict(t *testing.T) {
	for side, messages := range map[string][]proto.Message{
		"pod": {
			&runtime.PodSandboxConfig{}, &runtime.PodSandboxMetadata{}, &runtime.DNSConfig{}, &runtime.PortMapping{},
			&runtime.LinuxPodSandboxConfig{}, &runtime.LinuxSandboxSecurityContext{}, &runtime.NamespaceOption{},
			&runtime.UserNamespace{}, &runtime.LinuxContainerResources{}, &runtime.SELinuxOption{},
		},
		"container": {
			&runtime.ContainerConfig{}, &runtime.ContainerMetadata{}, &runtime.ImageSpec{}, &runtime.KeyValue{}, &runtime.Mount{},
			&runtime.IDMapping{}, &runtime.Device{}, &runtime.CDIDevice{}, &runtime.LinuxContainerConfig{},
			&runtime.LinuxContainerResources{}, &runtime.HugepageLimit{}, &runtime.LinuxContainerSecurityContext{},
			&runtime.Capability{}, &runtime.SecurityProfile{}, &runtime.SELinuxOption{}, &runtime.NamespaceOption{},
		},
	} {
		known := map[string]bool{}
		for _, m := range messages {
			descriptor := m.ProtoReflect().Descriptor()
			for i := range descriptor.Fields().Len() {
				name := string(descriptor.Name()) + "." + string(descriptor.Fields().Get(i).Name())
				known[name] = true
				_, ok := podFields[name]
				if side == "container" {
					_, ok = ctrFields[name]
				}
				if !ok {
					t.Errorf("%s: nothing says what becomes of field %s", side, name)
				}
			}
		}
		if side == "pod" {
			assertKnown(t, podFields, known)
		} else {
			assertKnown(t, ctrFields, known)
		}
	}
}

func assertKnown[V any](t *testing.T, table map[string]V, known map[string]bool) {
	t.Helper()
	for name := range table {
		if !known[name] {
			t.Errorf("there is no field %s", name)
		}
	}
}

func TestPodFields(t *testing.T) {
	checkVerdicts(t, podFields, fullPod, func(c *runtime.PodSandboxConfig) (any, error) { return Sandbox(c) })
}

func TestContainerFields(t *testing.T) {
	checkVerdicts(t, ctrFields, fullContainer, func(c *runtime.ContainerConfig) (any, error) {
		return Container(c, testPod())
	})
}

func checkVerdicts[C any](t *testing.T, table map[string]verdict[C], full func() C, convert func(C) (any, error)) {
	t.Helper()
	converted, err := convert(full())
	if err != nil {
		t.Fatal(err)
	}
	before := toJSON(t, converted)
	for name, v := range table {
		t.Run(strings.ReplaceAll(name, ".", "/"), func(t *testing.T) {
			c := full()
			switch {
			case v.ignored != "":
				return
			case v.refused != nil:
				v.refused(c)
				if _, err := convert(c); err == nil {
					t.Error("not refused")
				}
				return
			}
			v.carried(c)
			converted, err := convert(c)
			if err != nil {
				t.Fatal(err)
			}
			if toJSON(t, converted) == before {
				t.Error("not carried: the converted configuration is the same")
			}
		})
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
