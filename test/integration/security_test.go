package integration

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// securityCase is what a container finds that has a security context.
type securityCase struct {
	name   string
	script string
	adjust func(*runtime.LinuxContainerSecurityContext)
	want   string
}

// securityCases hold for pods of both kinds.
func securityCases() []securityCase {
	return []securityCase{
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
		{"ambient", "grep CapAmb /proc/self/status", func(s *runtime.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtime.Int64Value{Value: 1234}
			s.Capabilities = &runtime.Capability{AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		}, "CapAmb:\t0000000000000400\n"},
	}
}

// secured runs each case in a container of its own.
func secured(t *testing.T, d *daemon, cases []securityCase) {
	t.Helper()
	pod, config := d.runPod("security", func(c *runtime.PodSandboxConfig) {
		c.Linux.SecurityContext.Privileged = true // one of the containers is
	})
	for _, c := range cases {
		ctr := shell(c.name, c.script)
		c.adjust(ctr.Linux.SecurityContext)
		if got := d.run(pod, config, ctr); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	d.stopAndRemove(pod)
}

// TestSecurityContext: what a container's security context says holds inside the guest.
func TestSecurityContext(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	secured(t, d, securityCases())
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
	if s := sandbox.Stats.GetLinux(); s.GetCpu().GetPsi() == nil || s.GetMemory().GetPsi() == nil || s.GetIo().GetPsi() == nil {
		t.Errorf("the pressure on the pod is not told: %v", s)
	}
	ofPod, ofContainer := d.metricsOf(pod, id)
	checkMetrics(t, ofPod, ofContainer)
	expect(t, "the limit among the metrics", ofContainer["container_spec_memory_limit_bytes"], 96<<20)
	if ofContainer["container_cpu_cfs_periods_total"] == 0 {
		t.Errorf("no periods of the CPU quota: %v", ofContainer)
	}

	hungry := shell("hungry", "tail /dev/zero")
	hungry.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 << 20}
	status := d.wait(d.launch(pod, config, hungry))
	expect(t, "reason of a container that used too much memory", status.Reason, "OOMKilled")
	expect(t, "its exit code", status.ExitCode, 137)
}

// TestUpdatedResources: containers are resized as the kubelet does it, up to what the VM has, and confined to processors.
func TestUpdatedResources(t *testing.T) {
	d := startDaemon(t, "memory_mib = 256\nmax_vcpus = 2\nmax_memory_mib = 1024\n")
	d.pull(testImage)
	host := unix.CPUSet{}
	if err := unix.SchedGetaffinity(0, &host); err != nil {
		t.Fatal(err)
	}
	if !host.IsSet(0) || !host.IsSet(1) {
		t.Skip("SKIPPED: needs the processors 0 and 1")
	}
	pod, config := d.runPod("resized", func(c *runtime.PodSandboxConfig) {
		c.Linux.Resources = &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 100000, MemoryLimitInBytes: 256 << 20}
	})
	resources := func(change func(*runtime.LinuxContainerResources)) *runtime.LinuxContainerResources {
		r := &runtime.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 990}
		change(r)
		return r
	}
	c := shell("resized", forever)
	c.Linux.Resources = resources(func(r *runtime.LinuxContainerResources) { r.CpusetCpus, r.CpusetMems = "1", "0" })
	id := d.launch(pod, config, c)
	state := func() string {
		return d.execSync(id, "sh", "-c", "cd /sys/fs/cgroup; cat memory.max cpu.max; nproc")
	}
	vmm := func() (on string) {
		t.Helper()
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(d.process(pod, "vmmPid"), &set); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(set.IsSet(0), set.IsSet(1))
	}
	expect(t, "at first", state(), "134217728\n50000 100000\n1\n")
	expect(t, "the VM's processors", vmm(), "false true")
	update := func(change func(*runtime.LinuxContainerResources)) error {
		_, err := d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: resources(change)})
		return err
	}
	for _, step := range []struct {
		what   string
		change func(*runtime.LinuxContainerResources)
		state  string
		vmm    string
	}{
		{"up", func(r *runtime.LinuxContainerResources) {
			r.CpuQuota, r.MemoryLimitInBytes, r.CpusetCpus = 150000, 256<<20, "0-1"
		}, "268435456\n150000 100000\n2\n", "true true"},
		// The pod as a whole has a limit of one, for which its VM was made and which it goes back to.
		{"without a CPU limit", func(r *runtime.LinuxContainerResources) { r.CpuQuota, r.MemoryLimitInBytes = -1, 256<<20 }, "268435456\nmax 100000\n1\n", "true true"},
		{"down, with another OOM score", func(r *runtime.LinuxContainerResources) { r.CpusetCpus, r.OomScoreAdj = "0", 900 }, "134217728\n50000 100000\n1\n", "true false"},
	} {
		if err := update(step.change); err != nil {
			t.Errorf("%s: %v", step.what, err)
		}
		expect(t, step.what, state(), step.state)
		expect(t, step.what+": the VM's processors", vmm(), step.vmm)
	}
	refused(t, "more memory than the VM has", update(func(r *runtime.LinuxContainerResources) { r.MemoryLimitInBytes = 1 << 30 }), codes.ResourceExhausted, "1024 MiB", "vm.max_memory_mib")
	refused(t, "more processors than the VM has", update(func(r *runtime.LinuxContainerResources) { r.CpuQuota = 300000 }), codes.ResourceExhausted, "3.000 processors")
	refused(t, "a processor that is not there", update(func(r *runtime.LinuxContainerResources) { r.CpusetCpus = "4000" }), codes.InvalidArgument, "4000")
	refused(t, "another OOM score alone", func() error {
		_, err := d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtime.LinuxContainerResources{OomScoreAdj: 1}})
		return err
	}(), codes.Unimplemented, "oom_score_adj")
	if err := d.resizePod(pod, 256<<20); err != nil {
		t.Errorf("the pod as a whole, as large as it is: %v", err)
	}
	refused(t, "a pod that is larger than its VM", d.resizePod(pod, 1<<30), codes.ResourceExhausted, "1024 MiB at most", "vm.max_memory_mib")
	expect(t, "after what was refused", state(), "134217728\n50000 100000\n1\n")
	told := d.status(id).Resources.GetLinux()
	expect(t, "the status", fmt.Sprintf("%d %d %s %d", told.MemoryLimitInBytes, told.CpuQuota, told.CpusetCpus, told.OomScoreAdj), "134217728 50000 0 990")

	// A container that may run anywhere frees the VM, and its end confines it again.
	other := d.launch(pod, config, shell("other", forever))
	expect(t, "the VM's processors beside another container", vmm(), "true true")
	if _, err := d.RemoveContainer(d.call(), &runtime.RemoveContainerRequest{ContainerId: other}); err != nil {
		t.Fatal(err)
	}
	expect(t, "the VM's processors after it", vmm(), "true false")
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
