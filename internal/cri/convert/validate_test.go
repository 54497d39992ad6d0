package convert

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
)

func TestSandboxConfigRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*runtime.PodSandboxConfig)
		want   string
	}{
		"no metadata":    {func(c *runtime.PodSandboxConfig) { c.Metadata = nil }, "metadata is missing"},
		"no name":        {func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "" }, "name is missing"},
		"no uid":         {func(c *runtime.PodSandboxConfig) { c.Metadata.Uid = "" }, "uid is missing"},
		"no namespace":   {func(c *runtime.PodSandboxConfig) { c.Metadata.Namespace = "" }, "namespace is missing"},
		"long name":      {func(c *runtime.PodSandboxConfig) { c.Metadata.Name = strings.Repeat("x", 300) }, "at most 253"},
		"slash":          {func(c *runtime.PodSandboxConfig) { c.Metadata.Name = "../x" }, "slash"},
		"hostname":       {func(c *runtime.PodSandboxConfig) { c.Hostname = "no_good!" }, "hostname"},
		"long hostname":  {func(c *runtime.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) }, "hostname"},
		"log directory":  {func(c *runtime.PodSandboxConfig) { c.LogDirectory = "logs" }, "log_directory"},
		"annotation NUL": {func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{"a": "\x00"} }, "annotations"},
		"annotation key": {func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{"": "x"} }, "annotations"},
		"annotations":    {func(c *runtime.PodSandboxConfig) { c.Annotations = map[string]string{"a": strings.Repeat("x", 2<<20)} }, "at most"},
		"dns server":     {func(c *runtime.PodSandboxConfig) { c.DnsConfig = &runtime.DNSConfig{Servers: []string{"dns.example"}} }, "not an IP"},
		"dns search": {func(c *runtime.PodSandboxConfig) {
			c.DnsConfig = &runtime.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}}
		}, "not one word"},
		"port":                {func(c *runtime.PodSandboxConfig) { c.PortMappings = []*runtime.PortMapping{port(0, 1)} }, "container port"},
		"host port":           {func(c *runtime.PodSandboxConfig) { c.PortMappings = []*runtime.PortMapping{port(1, 70000)} }, "host port"},
		"host network's port": {func(c *runtime.PodSandboxConfig) { podNamespaces(c).Network = runtime.NamespaceMode_NODE }, "host's network"},
		"nil port":            {func(c *runtime.PodSandboxConfig) { c.PortMappings = []*runtime.PortMapping{nil} }, "empty"},
		"sysctl":              {func(c *runtime.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"../../x": "1"} }, "sysctl"},
		"group":               {func(c *runtime.PodSandboxConfig) { podSecurity(c).RunAsGroup = &runtime.Int64Value{} }, "run_as_group"},
		"network mode":        {func(c *runtime.PodSandboxConfig) { podNamespaces(c).Network = runtime.NamespaceMode_TARGET }, "not POD or NODE"},
		"pid mode":            {func(c *runtime.PodSandboxConfig) { podNamespaces(c).Pid = runtime.NamespaceMode_TARGET }, "PID namespace of a container"},
		"memory":              {func(c *runtime.PodSandboxConfig) { c.Linux.Resources.MemoryLimitInBytes = -5 }, "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			c := fullPod()
			tt.change(c)
			_, err := Sandbox(c)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want InvalidArgument with %q", err, tt.want)
			}
		})
	}
	if _, err := Sandbox(nil); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestContainerConfigRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*runtime.ContainerConfig)
		want   string
	}{
		"no metadata":    {func(c *runtime.ContainerConfig) { c.Metadata = nil }, "metadata is missing"},
		"no name":        {func(c *runtime.ContainerConfig) { c.Metadata.Name = "" }, "name is missing"},
		"no image":       {func(c *runtime.ContainerConfig) { c.Image = nil }, "image"},
		"command NUL":    {func(c *runtime.ContainerConfig) { c.Args = []string{"a\x00"} }, "NUL"},
		"stdin once":     {func(c *runtime.ContainerConfig) { c.Stdin = false }, "stdin_once"},
		"working dir":    {func(c *runtime.ContainerConfig) { c.WorkingDir = "x" }, "absolute"},
		"log absolute":   {func(c *runtime.ContainerConfig) { c.LogPath = "/etc/passwd" }, "absolute"},
		"log escape":     {func(c *runtime.ContainerConfig) { c.LogPath = "../x" }, "log_path"},
		"log directory":  {func(c *runtime.ContainerConfig) { c.LogPath = "x/" }, "log_path"},
		"env":            {func(c *runtime.ContainerConfig) { c.Envs[0].Key = "A=B" }, "environment"},
		"env bytes":      {func(c *runtime.ContainerConfig) { c.Envs[0].Value = []byte{0xff} }, "UTF-8"},
		"nil env":        {func(c *runtime.ContainerConfig) { c.Envs = []*runtime.KeyValue{nil} }, "environment"},
		"mount relative": {func(c *runtime.ContainerConfig) { c.Mounts[0].ContainerPath = "x" }, "absolute"},
		"mount on root":  {func(c *runtime.ContainerConfig) { c.Mounts[0].ContainerPath = "/." }, "below /"},
		"mount host":     {func(c *runtime.ContainerConfig) { c.Mounts[0].HostPath = "x" }, "host path"},
		"mount both":     {func(c *runtime.ContainerConfig) { c.Mounts[1].HostPath = "/x" }, "exclude each other"},
		"mount sub path": {func(c *runtime.ContainerConfig) { c.Mounts[1].ImageSubPath = "../x" }, "out of the image"},
		"mount option":   {func(c *runtime.ContainerConfig) { c.Mounts[0].MountOptions = []string{"rw"} }, "noexec"},
		"mount nil":      {func(c *runtime.ContainerConfig) { c.Mounts[0] = nil }, "empty"},
		"propagation":    {func(c *runtime.ContainerConfig) { c.Mounts[0].Propagation = 7 }, "propagation"},
		"device":         {func(c *runtime.ContainerConfig) { c.Devices[0].HostPath = "x" }, "devices"},
		"device mode":    {func(c *runtime.ContainerConfig) { c.Devices[0].Permissions = "rx" }, "permissions"},
		"cdi":            {func(c *runtime.ContainerConfig) { c.CDIDevices[0].Name = "gpu" }, "CDI"},
		"signal":         {func(c *runtime.ContainerConfig) { c.StopSignal = 99 }, "signal"},
		"oom score":      {func(c *runtime.ContainerConfig) { c.Linux.Resources.OomScoreAdj = 1001 }, "oom_score_adj"},
		"period":         {func(c *runtime.ContainerConfig) { c.Linux.Resources.CpuPeriod = 5 }, "cpu_period"},
		"shares":         {func(c *runtime.ContainerConfig) { c.Linux.Resources.CpuShares = 1 }, "cpu_shares"},
		"quota":          {func(c *runtime.ContainerConfig) { c.Linux.Resources.CpuQuota = 5 }, "cpu_quota"},
		"swap":           {func(c *runtime.ContainerConfig) { c.Linux.Resources.MemorySwapLimitInBytes = 1 }, "swap"},
		"cpuset":         {func(c *runtime.ContainerConfig) { c.Linux.Resources.CpusetCpus = "a" }, "cpuset_cpus"},
		"hugepages": {func(c *runtime.ContainerConfig) {
			c.Linux.Resources.HugepageLimits = []*runtime.HugepageLimit{{PageSize: "big"}}
		}, "page size"},
		"unified":         {func(c *runtime.ContainerConfig) { c.Linux.Resources.Unified = map[string]string{"../x": "1"} }, "unified"},
		"capability":      {func(c *runtime.ContainerConfig) { security(c).Capabilities.AddCapabilities = []string{"net admin"} }, "capability"},
		"masked path":     {func(c *runtime.ContainerConfig) { security(c).MaskedPaths = []string{"proc"} }, "not absolute"},
		"user and name":   {func(c *runtime.ContainerConfig) { security(c).RunAsUsername = "joe" }, "exclude each other"},
		"group alone":     {func(c *runtime.ContainerConfig) { security(c).RunAsUser = nil }, "run_as_group"},
		"negative user":   {func(c *runtime.ContainerConfig) { security(c).RunAsUser.Value = -1 }, "run_as_user"},
		"huge group":      {func(c *runtime.ContainerConfig) { security(c).SupplementalGroups = []int64{1 << 40} }, "supplemental_groups"},
		"user name":       {func(c *runtime.ContainerConfig) { security(c).RunAsUser, security(c).RunAsUsername = nil, "a:b" }, "run_as_username"},
		"policy":          {func(c *runtime.ContainerConfig) { security(c).SupplementalGroupsPolicy = 9 }, "policy"},
		"no profile":      {func(c *runtime.ContainerConfig) { security(c).Seccomp.LocalhostRef = "" }, "localhost_ref"},
		"profile path":    {func(c *runtime.ContainerConfig) { security(c).Seccomp.LocalhostRef = "x" }, "absolute"},
		"profile type":    {func(c *runtime.ContainerConfig) { security(c).Seccomp.ProfileType = 9 }, "profile type"},
		"old profile":     {func(c *runtime.ContainerConfig) { security(c).Seccomp, security(c).SeccompProfilePath = nil, "x" }, "localhost/"},
		"selinux":         {func(c *runtime.ContainerConfig) { security(c).SelinuxOptions.Type = "a b" }, "label"},
		"host pid":        {func(c *runtime.ContainerConfig) { security(c).NamespaceOptions.Pid = runtime.NamespaceMode_NODE }, "host's PID"},
		"target":          {func(c *runtime.ContainerConfig) { security(c).NamespaceOptions.TargetId = "x" }, "TARGET"},
		"no target":       {func(c *runtime.ContainerConfig) { security(c).NamespaceOptions.Pid = runtime.NamespaceMode_TARGET }, "target container"},
		"apparmor for VM": {func(c *runtime.ContainerConfig) { security(c).Apparmor = security(c).Seccomp }, "kernel of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			c := fullContainer()
			tt.change(c)
			_, err := Container(c, vmPod())
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want InvalidArgument with %q", err, tt.want)
			}
		})
	}
	alone := fullContainer()
	security(alone).NamespaceOptions.Pid = runtime.NamespaceMode_CONTAINER
	security(alone).Apparmor = nil
	if cfg, err := Container(alone, vmPod()); err != nil || cfg.Security.SharedPID || cfg.Security.TargetPID != "" {
		t.Errorf("a PID namespace of its own in a pod that shares one: %+v, %v", cfg.Security, err)
	}
	pod := testPod()
	pod.Config.Privileged, pod.Config.SharedPID, pod.Config.LogDir = false, false, ""
	c := fullContainer()
	if _, err := Container(c, pod); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "log_directory") {
		t.Error(err)
	}
	c.LogPath = ""
	if _, err := Container(c, pod); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "PID namespace") {
		t.Error(err)
	}
	c.Linux.SecurityContext.NamespaceOptions = nil // as the pod
	if cfg, err := Container(c, pod); err != nil || cfg.Security.SharedPID {
		t.Error(cfg.Security, err)
	}
	c.Linux.SecurityContext.Privileged = true
	if _, err := Container(c, pod); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "privileged") {
		t.Error(err)
	}
}

func TestDefaults(t *testing.T) {
	cfg, err := Sandbox(&runtime.PodSandboxConfig{Metadata: podConfig("My.Pod-" + strings.Repeat("x", 100)).Metadata})
	if err != nil || !cfg.SharedPID || len(cfg.Hostname) != 63 {
		t.Errorf("%+v, %v", cfg, err)
	}
	ctr, err := Container(&runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "c"}, Image: &runtime.ImageSpec{Image: "i"},
	}, vmPod())
	if err != nil || ctr.Security.Seccomp.Kind != "unconfined" || ctr.Security.AppArmor.Kind != "runtime/default" || ctr.Resources != nil {
		t.Errorf("%+v, %v", ctr, err)
	}
}

func TestSignals(t *testing.T) {
	if len(signalNames) != len(runtime.Signal_name) {
		t.Errorf("%d names for %d signals", len(signalNames), len(runtime.Signal_name))
	}
	for number, constant := range runtime.Signal_name {
		name, err := signalName(runtime.Signal(number))
		if err != nil {
			t.Error(err)
		}
		// Today the constants spell the names; this finds a slip in the list.
		spelled := strings.NewReplacer("SIGNAL_", "", "PLUS", "+", "MINUS", "-", "RUNTIME_DEFAULT", "").Replace(constant)
		if name != spelled {
			t.Errorf("%d: %q is spelled %q", number, name, spelled)
		}
	}
	for signal, want := range map[unix.Signal]runtime.Signal{
		0: runtime.Signal_SIGNAL_RUNTIME_DEFAULT, unix.SIGTERM: runtime.Signal_SIGNAL_SIGTERM, unix.SIGQUIT: runtime.Signal_SIGNAL_SIGQUIT,
		34: runtime.Signal_SIGNAL_SIGRTMIN, 37: runtime.Signal_SIGNAL_SIGRTMINPLUS3, 49: runtime.Signal_SIGNAL_SIGRTMINPLUS15,
		50: runtime.Signal_SIGNAL_SIGRTMAXMINUS14, 64: runtime.Signal_SIGNAL_SIGRTMAX, 99: runtime.Signal_SIGNAL_RUNTIME_DEFAULT,
	} {
		if got := SignalNumber(signal); got != want {
			t.Errorf("signal %d: got %v, want %v", signal, got, want)
		}
	}
}

func vmPod() sandbox.Status {
	pod := testPod()
	pod.VM = true
	return pod
}

func podConfig(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name, Attempt: 1},
		LogDirectory: "/var/log/pods/" + name,
		Labels:       map[string]string{"app": name}, Annotations: map[string]string{"note": "x"},
	}
}

func ctrConfig(name string) *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name}, Image: &runtime.ImageSpec{Image: "example.com/a:1"},
		Command: []string{"/bin/sh"}, LogPath: name + "/0.log", Labels: map[string]string{"c": name},
	}
}

// TestProfileOfBothForms: the prefix of the old field is none of a profile's name.
func TestProfileOfBothForms(t *testing.T) {
	for _, ref := range []string{"mine", "localhost/mine"} {
		p := &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: ref}
		for _, old := range []string{"", "localhost/other"} {
			if got, err := profile("f", p, old, container.ProfileDefault); err != nil || got != (container.Profile{Kind: container.ProfileLocalhost, Path: "mine"}) {
				t.Errorf("%q, %q: %v, %v", ref, old, got, err)
			}
		}
	}
	if _, err := profile("f", &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "localhost/"}, "", container.ProfileDefault); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
