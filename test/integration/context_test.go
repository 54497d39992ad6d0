package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// These tests go through the contexts of CRI on the host's kernel: what containers find, and what is refused.

// hostHasAppArmor tells whether profiles can be had here.
func hostHasAppArmor() bool {
	enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	_, err := os.Stat("/sbin/apparmor_parser")
	return strings.HasPrefix(string(enabled), "Y") && err == nil
}

// TestHostSecurityContext: what a security context says holds on the host's kernel, with profiles of the host's.
func TestHostSecurityContext(t *testing.T) {
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat"],"action":"SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	localhost := func(ref string) *runtime.SecurityProfile {
		return &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: ref}
	}
	const blocked = "chmod 700 /tmp 2>&1 | grep -o 'Operation not permitted'"
	cases := append(securityCases(),
		securityCase{"seccomp-profile", blocked, func(s *runtime.LinuxContainerSecurityContext) { s.Seccomp = localhost(profile) }, "Operation not permitted\n"},
		securityCase{"seccomp-old-field", blocked, func(s *runtime.LinuxContainerSecurityContext) { s.SeccompProfilePath = "localhost/" + profile }, "Operation not permitted\n"},
		securityCase{"selinux-where-it-is-off", "echo ran", func(s *runtime.LinuxContainerSecurityContext) {
			s.SelinuxOptions = &runtime.SELinuxOption{Type: "container_t"}
		}, "ran\n"})
	if hostHasAppArmor() {
		const current = "cat /proc/self/attr/apparmor/current"
		cases = append(cases,
			securityCase{"apparmor-default", current, func(*runtime.LinuxContainerSecurityContext) {}, "pistis-default (enforce)\n"},
			securityCase{"apparmor-unconfined", current, func(s *runtime.LinuxContainerSecurityContext) {
				s.Apparmor = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
			}, "unconfined\n"},
			securityCase{"apparmor-privileged", current, func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }, "unconfined\n"},
			securityCase{"apparmor-by-name", current, func(s *runtime.LinuxContainerSecurityContext) { s.Apparmor = localhost("pistis-default") }, "pistis-default (enforce)\n"},
			securityCase{"apparmor-old-field", current, func(s *runtime.LinuxContainerSecurityContext) { s.ApparmorProfile = "localhost/pistis-default" }, "pistis-default (enforce)\n"})
	}
	onHost(t, func(t *testing.T, d *daemon) {
		secured(t, d, cases)
		pod, config := d.runPod("refusals", nil)
		for what, bad := range map[string]struct {
			adjust func(*runtime.LinuxContainerSecurityContext)
			code   codes.Code
			word   string
		}{
			"a seccomp profile that is not there":    {func(s *runtime.LinuxContainerSecurityContext) { s.Seccomp = localhost(profile + "x") }, codes.NotFound, profile},
			"an AppArmor profile that is not loaded": {func(s *runtime.LinuxContainerSecurityContext) { s.Apparmor = localhost("no-such") }, codes.FailedPrecondition, "no-such"},
			"privileges in a pod without":            {func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }, codes.InvalidArgument, "privileged"},
			"a capability of nobody's": {func(s *runtime.LinuxContainerSecurityContext) {
				s.Capabilities = &runtime.Capability{AddCapabilities: []string{"FLY"}}
			}, codes.InvalidArgument, "FLY"},
			"a user whom the image does not know": {func(s *runtime.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-here" }, codes.NotFound, "nobody-here"},
		} {
			c := shell("bad", "true")
			bad.adjust(c.Linux.SecurityContext)
			_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
			refused(t, what, err, bad.code, bad.word)
		}
		if _, containers := d.all(); len(containers) > 0 {
			t.Errorf("left of what was refused: %v", containers)
		}
		d.stopAndRemove(pod)
		d.nothing("after security contexts")
	})
}

// TestHostMountsAndDevices: mounts have their options, devices their permissions, and CDI's drivers what they ask for.
func TestHostMountsAndDevices(t *testing.T) {
	const device = "/dev/fuse"
	if _, err := os.Stat(device); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	vendor := fmt.Sprintf("pistis%d.test", os.Getpid())
	spec := filepath.Join("/var/run/cdi", vendor+".json")
	if err := os.MkdirAll(filepath.Dir(spec), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(spec, fmt.Appendf(nil, `{"cdiVersion":"0.6.0","kind":"%s/thing","devices":[{"name":"one","containerEdits":{
		"env":["THING=one"],"deviceNodes":[{"path":"/dev/thing","hostPath":%q}]}}]}`, vendor, device), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(spec); err != nil {
			t.Error(err)
		}
	})
	onHost(t, func(t *testing.T, d *daemon) {
		volume := t.TempDir()
		if err := os.WriteFile(filepath.Join(volume, "program"), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		below := filepath.Join(volume, "below")
		if err := os.Mkdir(below, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("none", below, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(below, 0)
		pod, config := d.runPod("mounts", func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
		})
		c := shell("c", script(
			"/plain/program", "! /noexec/program 2>/dev/null", "touch /ro/below/made", "! touch /rro/below/made 2>/dev/null",
			"! touch /ro/made 2>/dev/null", "grep -q ' /noexec .*nosuid,nodev,noexec' /proc/mounts",
			"dd if=/dev/mine count=0 2>/dev/null", "! dd of=/dev/mine count=0 2>/dev/null", "test ! -e "+device,
			"test -c /dev/thing", "echo $THING",
			"cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced"))
		c.Mounts = []*runtime.Mount{
			{ContainerPath: "/plain", HostPath: volume},
			{ContainerPath: "/noexec", HostPath: volume, MountOptions: []string{"noexec", "nosuid", "nodev"}},
			{ContainerPath: "/ro", HostPath: volume, Readonly: true},
			{ContainerPath: "/rro", HostPath: volume, Readonly: true, RecursiveReadOnly: true},
		}
		c.Devices = []*runtime.Device{{HostPath: device, ContainerPath: "/dev/mine", Permissions: "r"}}
		c.CDIDevices = []*runtime.CDIDevice{{Name: vendor + "/thing=one"}}
		expect(t, "what the driver and the sysctls say", d.run(pod, config, c), "ran\none\n80\n1\n")
		for what, bad := range map[string]func(*runtime.ContainerConfig){
			"a CDI device of nobody's":     func(c *runtime.ContainerConfig) { c.CDIDevices[0].Name = vendor + "/thing=two" },
			"a device that is none":        func(c *runtime.ContainerConfig) { c.Devices[0].HostPath = volume + "/program" },
			"a volume that is not there":   func(c *runtime.ContainerConfig) { c.Mounts[0].HostPath = volume + "/none" },
			"a mount option of nobody's":   func(c *runtime.ContainerConfig) { c.Mounts[1].MountOptions[0] = "suid" },
			"read-only below and writable": func(c *runtime.ContainerConfig) { c.Mounts[3].Readonly = false },
		} {
			other := shell("bad", "true")
			other.Mounts = []*runtime.Mount{
				{ContainerPath: "/a", HostPath: volume}, {ContainerPath: "/b", HostPath: volume, MountOptions: []string{"noexec"}},
				{ContainerPath: "/c", HostPath: volume}, {ContainerPath: "/d", HostPath: volume, Readonly: true, RecursiveReadOnly: true},
			}
			other.Devices = []*runtime.Device{{HostPath: device, ContainerPath: "/dev/mine", Permissions: "r"}}
			other.CDIDevices = []*runtime.CDIDevice{{Name: vendor + "/thing=one"}}
			bad(other)
			_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: other, SandboxConfig: config})
			refused(t, what, err, codes.InvalidArgument)
		}
		badPod := d.podConfig("sysctl")
		badPod.Linux.Sysctls = map[string]string{"vm.swappiness": "1"}
		_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: badPod, RuntimeHandler: d.handler})
		refused(t, "a sysctl of the node's", err, codes.InvalidArgument, "vm.swappiness")

		stopped := shell("stopped", "trap 'exit 42' USR1; echo ready; while :; do sleep 1 & wait; done")
		stopped.StopSignal = runtime.Signal_SIGNAL_SIGUSR1
		id := d.launch(pod, config, stopped)
		if got := d.status(id).StopSignal; got != runtime.Signal_SIGNAL_SIGUSR1 {
			t.Errorf("the status tells the stop signal %v", got)
		}
		eventually(t, "the container to expect the signal", func() bool { return d.logOf(d.status(id), "stdout") == "ready\n" })
		if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
			t.Fatal(err)
		}
		expect(t, "exit code after the stop signal", d.wait(id).ExitCode, 42)
		d.stopAndRemove(pod)
		d.nothing("after mounts and devices")
	})
}

// TestHostCannotStart: what no runtime can do is the request's fault, is said so, and leaves a container that has ended.
func TestHostCannotStart(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		pod, config := d.runPod("unstartable", nil)
		for name, test := range map[string]struct {
			adjust func(*runtime.ContainerConfig)
			code   int32
		}{
			"directory-is-a-file":    {func(c *runtime.ContainerConfig) { c.WorkingDir = "/etc/passwd" }, 128},
			"file-over-a-directory":  {func(c *runtime.ContainerConfig) { c.Mounts = []*runtime.Mount{{ContainerPath: "/etc", HostPath: file}} }, 128},
			"processors-not-there":   {func(c *runtime.ContainerConfig) { c.Linux.Resources.CpusetCpus = "4000" }, 128},
			"program-not-there":      {func(c *runtime.ContainerConfig) { c.Command = []string{"/none"} }, 127},
			"program-not-executable": {func(c *runtime.ContainerConfig) { c.Command = []string{"/etc/passwd"} }, 126},
		} {
			c := shell(name, "true")
			test.adjust(c)
			id := d.create(pod, config, c)
			_, err := d.StartContainer(d.call(), &runtime.StartContainerRequest{ContainerId: id})
			refused(t, name, err, codes.InvalidArgument)
			if s := d.status(id); s.State != runtime.ContainerState_CONTAINER_EXITED || s.ExitCode != test.code {
				t.Errorf("%s: state %v, exit code %d, reason %s", name, s.State, s.ExitCode, s.Reason)
			}
		}
		running := d.launch(pod, config, shell("running", forever))
		refused(t, "an update to processors that are not there", d.updateLimits(running, &runtime.LinuxContainerResources{CpusetCpus: "4000"}), codes.InvalidArgument)
		for name, set := range map[string]func(*runtime.PodSandboxConfig){
			"a cgroup parent that leads upwards": func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = "/x/../../y" },
			"a host port on the host's network": func(c *runtime.PodSandboxConfig) {
				c.Hostname, c.Linux.SecurityContext.NamespaceOptions.Network = "", runtime.NamespaceMode_NODE
				c.PortMappings = []*runtime.PortMapping{{ContainerPort: 80, HostPort: 8080}}
			},
		} {
			bad := d.podConfig("bad")
			set(bad)
			_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: bad, RuntimeHandler: d.handler})
			refused(t, name, err, codes.InvalidArgument)
		}
		d.stopAndRemove(pod)
		d.nothing("after what cannot start")
	})
}
