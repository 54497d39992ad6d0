package integration

import (
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestSecurityContext: what a container's security context says holds inside the guest.
func TestSecurityContext(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("security", func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.Privileged = true // one of the containers is
	})
	cases := []struct {
		name   string
		script string
		adjust func(*runtime.LinuxContainerSecurityContext)
		want   string
	}{
		{"uid", "id -u; id -g; id -G", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtime.Int64Value{Value: 1234}, &runtime.Int64Value{Value: 4321}, []int64{77}
		}, "1234\n4321\n4321 77\n"},
		{"no-new-privs", "grep NoNewPrivs /proc/self/status", func(s *runtime.LinuxContainerSecurityContext) { s.NoNewPrivs = true }, "NoNewPrivs:\t1\n"},
		{"readonly-root", "touch /x 2>&1 | grep -o 'Read-only file system'", func(s *runtime.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }, "Read-only file system\n"},
		{"drop-all", "grep CapEff /proc/self/status", func(s *runtime.LinuxContainerSecurityContext) {
			s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}}
		}, "CapEff:\t0000000000000000\n"},
		{"add-one", "grep CapEff /proc/self/status", func(s *runtime.LinuxContainerSecurityContext) {
			s.Capabilities = &runtime.Capability{DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_ADMIN"}}
		}, "CapEff:\t0000000000001000\n"},
		{"seccomp", "grep '^Seccomp:' /proc/self/status", func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_RuntimeDefault}
		}, "Seccomp:\t2\n"},
		{"unconfined", "grep '^Seccomp:' /proc/self/status", func(s *runtime.LinuxContainerSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Unconfined}
		}, "Seccomp:\t0\n"},
		{"masked", "cat /proc/version | wc -c", func(s *runtime.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"/proc/version"} }, "0\n"},
		{"privileged", "grep CapEff /proc/self/status | cut -c 1-14; mount -t tmpfs none /mnt && echo mounted", func(s *runtime.LinuxContainerSecurityContext) { s.Privileged = true }, "CapEff:\t000001\nmounted\n"},
	}
	for _, c := range cases {
		ctr := shell(c.name, c.script)
		c.adjust(ctr.Linux.SecurityContext)
		if got := d.run(pod, config, ctr); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

// TestResources: limits hold in the guest, can be changed, and what is used is reported.
func TestResources(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("resources", nil)
	limited := shell("limited", "head -c 3000000 /dev/zero > /file; sync; "+forever)
	limited.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000}
	id := d.launch(pod, config, limited)
	read := func() string {
		return d.execSync(id, "sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max")
	}
	expect(t, "limits", read(), "67108864\n50000 100000\n")
	_, err := d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtime.LinuxContainerResources{MemoryLimitInBytes: 96 << 20, CpuPeriod: 100000, CpuQuota: 75000}})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "limits after the update", read(), "100663296\n75000 100000\n")
	eventually(t, "statistics of the writable layer", func() bool {
		resp, err := d.ContainerStats(d.call(), &runtime.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		s := resp.Stats
		return s.WritableLayer.GetUsedBytes().GetValue() >= 3000000 && s.Cpu.GetUsageCoreNanoSeconds().GetValue() > 0 && s.Memory.GetWorkingSetBytes().GetValue() > 0
	})
	sandbox, err := d.PodSandboxStats(d.call(), &runtime.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	if net := sandbox.Stats.GetLinux().GetNetwork().GetDefaultInterface(); net.GetName() == "" {
		t.Errorf("no network statistics: %v", sandbox.Stats)
	}

	hungry := shell("hungry", "tail /dev/zero")
	hungry.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	status := d.wait(d.launch(pod, config, hungry))
	expect(t, "reason of a container that used too much memory", status.Reason, "OOMKilled")
	expect(t, "its exit code", status.ExitCode, 137)
}

// TestImageUsers: names of users and groups come from the image.
func TestImageUsers(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("users", nil)
	named := shell("named", "id -un; id -u; id -G")
	named.Linux.SecurityContext.RunAsUsername = "tester"
	id := d.launch(pod, config, named)
	status := d.wait(id)
	out := lines(d.logOf(status, "stdout"))
	expect(t, "user name", out[0], "tester")
	expect(t, "its groups, from the image", out[2], "1000 4 50 5000")
	if user := status.GetUser().GetLinux(); user == nil || strings.TrimSpace(out[1]) == "0" {
		t.Errorf("user %v, id -u says %v", user, out[1])
	}
}
