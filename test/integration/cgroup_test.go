package integration

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// These tests say what limits mean on the host that they run on: with cgroup v1 or v2, with systemd or without. `make
// lab-host-test` runs them on a host with v2, both ways.

// cgroupV2 tells whether the host has one hierarchy.
func cgroupV2() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// systemdCgroups tells whether the daemon wants the kubelet to use systemd.
func (d *daemon) systemdCgroups() bool {
	d.t.Helper()
	resp, err := d.RuntimeConfig(d.call(), &runtime.RuntimeConfigRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.Linux.CgroupDriver == runtime.CgroupDriver_SYSTEMD
}

// setting names a limit's file, as a container sees it, for both versions.
type setting struct{ v1, v2 string }

var (
	memoryMax  = setting{"memory/memory.limit_in_bytes", "memory.max"}
	swapMax    = setting{"memory/memory.memsw.limit_in_bytes", "memory.swap.max"}
	cpuQuota   = setting{"cpu/cpu.cfs_quota_us", "cpu.max"}
	cpuShares  = setting{"cpu/cpu.shares", "cpu.weight"}
	cpuSet     = setting{"cpuset/cpuset.cpus", "cpuset.cpus"}
	pidsMax    = setting{"pids/pids.max", "pids.max"}
	memoryHigh = setting{"", "memory.high"}
	hugePages  = setting{"hugetlb/hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max"}
)

func (s setting) path() string {
	if cgroupV2() {
		return filepath.Join("/sys/fs/cgroup", s.v2)
	}
	return filepath.Join("/sys/fs/cgroup", s.v1)
}

// limit is what a container finds in the file of a limit.
func (d *daemon) limit(id string, s setting) string {
	d.t.Helper()
	return strings.TrimSpace(d.execSync(id, "cat", s.path()))
}

// either chooses what a test expects of the host's version.
func either(v1, v2 string) string {
	if cgroupV2() {
		return v2
	}
	return v1
}

// hostHas tells whether a container's file is on this host, in groups that are made in the root.
func hostHas(t *testing.T, s setting) bool {
	t.Helper()
	if !cgroupV2() {
		_, err := os.Stat(s.path())
		return err == nil
	}
	dir, err := os.MkdirTemp("/sys/fs/cgroup", "pistis-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	_, err = os.Stat(filepath.Join(dir, s.v2))
	return err == nil
}

func (d *daemon) updateLimits(id string, r *runtime.LinuxContainerResources) error {
	_, err := d.UpdateContainerResources(d.call(), &runtime.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

const mib = 1 << 20

// TestCgroups runs what follows with one daemon for each runtime.
func TestCgroups(t *testing.T) {
	onHost(t, func(t *testing.T, d *daemon) {
		for _, test := range []struct {
			name string
			run  func(*testing.T, *daemon)
		}{
			{"Limits", limitsHold}, {"CreatedUpdate", limitsHoldFromStart}, {"Shrink", shrinkIsRefused}, {"Optional", optionalLimits},
			{"Swap", swapIsLimited}, {"OOM", oomIsTold}, {"Pressure", pressureIsTold}, {"Tree", groupsAreInPlace},
		} {
			t.Run(test.name, func(t *testing.T) {
				outer := d.t
				d.t = t
				defer func() { d.t = outer }()
				test.run(t, d)
				pods, _ := d.all()
				for _, pod := range pods {
					d.stopAndRemove(pod.Id)
				}
				d.nothing("after " + test.name)
			})
		}
	})
}

// limitsHold: a container finds the limits that it was given, then those that it is given while it runs, and its
// status tells them.
func limitsHold(t *testing.T, d *daemon) {
	pod, config := d.runPod("limits", nil)
	c := shell("limited", forever)
	c.Linux.Resources = &runtime.LinuxContainerResources{
		MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 64 * mib, CpuQuota: 50000, CpuPeriod: 100000, CpuShares: 512,
		CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 900,
	}
	if cgroupV2() {
		c.Linux.Resources.Unified = map[string]string{"pids.max": "100", "memory.high": fmt.Sprint(48 * mib)}
	}
	id := d.launch(pod, config, c)
	expect(t, "memory", d.limit(id, memoryMax), fmt.Sprint(64*mib))
	expect(t, "quota", d.limit(id, cpuQuota), either("50000", "50000 100000"))
	expect(t, "processors", d.limit(id, cpuSet), "0")
	expect(t, "OOM score", d.execSync(id, "cat", "/proc/1/oom_score_adj"), "900\n")
	before := d.limit(id, cpuShares)
	if cgroupV2() {
		expect(t, "pids", d.limit(id, pidsMax), "100")
		expect(t, "memory.high", d.limit(id, memoryHigh), fmt.Sprint(48*mib))
		expect(t, "pids without a limit", d.limit(d.launch(pod, config, shell("free", forever)), pidsMax), "max")
	} else {
		expect(t, "shares", before, "512")
	}
	// As the kubelet resizes: all limits that it knows, some of them changed.
	resized := &runtime.LinuxContainerResources{
		MemoryLimitInBytes: 96 * mib, MemorySwapLimitInBytes: 96 * mib, CpuQuota: 75000, CpuPeriod: 100000, CpuShares: 2048, OomScoreAdj: 900,
	}
	if cgroupV2() {
		resized.Unified = map[string]string{"memory.high": fmt.Sprint(80 * mib)}
	}
	if err := d.updateLimits(id, resized); err != nil {
		t.Fatal(err)
	}
	expect(t, "memory after the update", d.limit(id, memoryMax), fmt.Sprint(96*mib))
	expect(t, "quota after the update", d.limit(id, cpuQuota), either("75000", "75000 100000"))
	expect(t, "processors after the update", d.limit(id, cpuSet), "0")
	if after := d.limit(id, cpuShares); len(after) < len(before) || after == before {
		t.Errorf("shares were %s and are %s, with four times as many asked for", before, after)
	}
	told := d.status(id).Resources.GetLinux()
	want := proto.CloneOf(resized)
	want.CpusetCpus, want.CpusetMems = "0", "0"
	if cgroupV2() {
		want.Unified = map[string]string{"pids.max": "100", "memory.high": fmt.Sprint(80 * mib)}
		expect(t, "pids after the update", d.limit(id, pidsMax), "100")
		expect(t, "memory.high after the update", d.limit(id, memoryHigh), want.Unified["memory.high"])
	}
	if !proto.Equal(told, want) {
		t.Errorf("the status tells %v, want %v", told, want)
	}
	if d.handler == "crun" && !cgroupV2() {
		return // crun 1.8 writes -1 as an unsigned number there, and says that it failed
	}
	if err := d.updateLimits(id, &runtime.LinuxContainerResources{CpuQuota: -1, CpuPeriod: 100000}); err != nil {
		t.Fatal(err)
	}
	expect(t, "without a quota", d.limit(id, cpuQuota), either("-1", "max 100000"))
}

// limitsHoldFromStart: limits of a container that is created and does not run yet hold from its start.
func limitsHoldFromStart(t *testing.T, d *daemon) {
	pod, config := d.runPod("early", nil)
	c := shell("early", forever)
	c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, CpuQuota: 50000, CpuPeriod: 100000}
	id := d.create(pod, config, c)
	if err := d.updateLimits(id, &runtime.LinuxContainerResources{MemoryLimitInBytes: 32 * mib}); err != nil {
		t.Fatal(err)
	}
	d.startContainer(id)
	expect(t, "memory", d.limit(id, memoryMax), fmt.Sprint(32*mib))
	expect(t, "quota", d.limit(id, cpuQuota), either("50000", "50000 100000"))
}

// shrinkIsRefused: a limit below what a container uses is refused, and the container lives on with the old one.
func shrinkIsRefused(t *testing.T, d *daemon) {
	pod, config := d.runPod("shrunk", nil)
	c := shell("big", "x=$(head -c 20000000 /dev/zero | tr '\\0' x); echo ready; "+forever)
	c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 256 * mib, MemorySwapLimitInBytes: 256 * mib}
	id := d.launch(pod, config, c)
	eventually(t, "the memory to be used", func() bool { return d.logOf(d.status(id), "stdout") == "ready\n" })
	err := d.updateLimits(id, &runtime.LinuxContainerResources{MemoryLimitInBytes: 8 * mib, MemorySwapLimitInBytes: 8 * mib})
	refused(t, "less memory than is used", err, codes.FailedPrecondition, "memory")
	expect(t, "the limit", d.limit(id, memoryMax), fmt.Sprint(256*mib))
	expect(t, "state", d.status(id).State, runtime.ContainerState_CONTAINER_RUNNING)
	expect(t, "the limit in the status", d.status(id).Resources.Linux.MemoryLimitInBytes, 256*mib)
}

// optionalLimits: what only some hosts can limit holds where it can, and is refused where it cannot.
func optionalLimits(t *testing.T, d *daemon) {
	pod, config := d.runPod("optional", nil)
	for _, test := range []struct {
		what       string
		has        bool
		code       codes.Code
		resources  *runtime.LinuxContainerResources
		file       setting
		limit      string
		complaint  string
		updateable bool
	}{
		{
			what: "swap", has: hostHas(t, swapMax), code: codes.FailedPrecondition, complaint: "swap",
			resources: &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib},
			file:      swapMax, limit: either(fmt.Sprint(96*mib), fmt.Sprint(32*mib)), updateable: true,
		},
		{
			what: "huge pages", has: hostHas(t, hugePages), code: codes.FailedPrecondition, complaint: "huge pages",
			resources: &runtime.LinuxContainerResources{HugepageLimits: []*runtime.HugepageLimit{{PageSize: "2MB", Limit: 2 * mib}}},
			file:      hugePages, limit: fmt.Sprint(2 * mib),
		},
		{
			what: "unified", has: cgroupV2(), code: codes.InvalidArgument, complaint: "cgroup v2",
			resources: &runtime.LinuxContainerResources{Unified: map[string]string{"memory.high": fmt.Sprint(32 * mib)}},
			file:      memoryHigh, limit: fmt.Sprint(32 * mib), updateable: true,
		},
	} {
		c := shell(strings.ReplaceAll(test.what, " ", "-"), forever)
		c.Linux.Resources = test.resources
		plain := d.launch(pod, config, shell("plain-"+c.Metadata.Name, forever))
		if !test.has {
			_, err := d.CreateContainer(d.call(), &runtime.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: config})
			refused(t, test.what, err, test.code, test.complaint)
			refused(t, test.what+" in an update", d.updateLimits(plain, test.resources), test.code, test.complaint)
			continue
		}
		expect(t, test.what, d.limit(d.launch(pod, config, c), test.file), test.limit)
		if test.updateable {
			if err := d.updateLimits(plain, test.resources); err != nil {
				t.Errorf("%s in an update: %v", test.what, err)
			}
			expect(t, test.what+" after an update", d.limit(plain, test.file), test.limit)
		}
	}
}

// swapIsLimited: a container swaps as much as it may, and its statistics say so.
func swapIsLimited(t *testing.T, d *daemon) {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(meminfo), "SwapTotal:             0 kB") || !hostHas(t, swapMax) {
		t.Skip("SKIPPED: this host has no swap that cgroups limit")
	}
	pod, config := d.runPod("swap", nil)
	const use = "x=$(head -c 40000000 /dev/zero | tr '\\0' x); echo ready; "
	c := shell("swaps", use+forever)
	c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 32 * mib, MemorySwapLimitInBytes: 256 * mib}
	id := d.launch(pod, config, c)
	eventually(t, "more memory to be used than fits", func() bool { return d.logOf(d.status(id), "stdout") == "ready\n" })
	stats, err := d.ContainerStats(d.call(), &runtime.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	if used := stats.Stats.Swap.GetSwapUsageBytes().GetValue(); used == 0 || used > 224*mib {
		t.Errorf("%d bytes of swap used", used)
	}
	without := shell("does-not", use+forever)
	without.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 32 * mib, MemorySwapLimitInBytes: 32 * mib}
	if s := d.wait(d.launch(pod, config, without)); s.Reason != "OOMKilled" {
		t.Errorf("without swap: exit code %d, reason %s", s.ExitCode, s.Reason)
	}
}

// oomIsTold: whoever uses too much memory is said to, each time, also when its cgroup goes at once.
func oomIsTold(t *testing.T, d *daemon) {
	pod, config := d.runPod("greedy", nil)
	limits := &runtime.LinuxContainerResources{MemoryLimitInBytes: 16 * mib, MemorySwapLimitInBytes: 16 * mib}
	for i := range 8 {
		c := shell(fmt.Sprintf("greedy-%d", i), "exec tail /dev/zero")
		c.Linux.Resources = limits
		if s := d.wait(d.launch(pod, config, c)); s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("exit code %d, reason %s", s.ExitCode, s.Reason)
		}
	}
	killed := shell("killed", "exec sleep 1000")
	killed.Linux.Resources = limits
	id := d.launch(pod, config, killed)
	if _, err := d.StopContainer(d.call(), &runtime.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if s := d.wait(id); s.Reason != "Error" || s.ExitCode != 137 {
		t.Errorf("one that was killed and not for its memory: exit code %d, reason %s", s.ExitCode, s.Reason)
	}
}

// pressureIsTold: statistics tell of stalls where the host counts them, and make none up where it does not.
func pressureIsTold(t *testing.T, d *daemon) {
	pod, config := d.runPod("pressed", nil)
	c := shell("pressed", "while :; do :; done")
	c.Linux.Resources = &runtime.LinuxContainerResources{CpuQuota: 10000, CpuPeriod: 100000}
	id := d.launch(pod, config, c)
	counts := cgroupV2() && hostHas(t, setting{v2: "cpu.pressure"})
	eventually(t, "stalls to be counted", func() bool {
		resp, err := d.ContainerStats(d.call(), &runtime.ContainerStatsRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		s := resp.Stats
		if !counts {
			return s.Cpu.Psi == nil && s.Memory.Psi == nil && s.Io == nil
		}
		return s.Cpu.Psi.GetSome().GetTotal() > 0 && s.Memory.Psi != nil && s.Io.GetPsi() != nil
	})
	resp, err := d.PodSandboxStats(d.call(), &runtime.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	if s := resp.Stats.Linux; counts != (s.Cpu.Psi != nil && s.Memory.Psi != nil && s.Io.GetPsi() != nil) {
		t.Errorf("statistics of the pod: %v", s)
	}
}

// groupsOf are the cgroups of a process, one for each hierarchy that says more than the root.
func groupsOf(t *testing.T, pid string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, line := range lines(string(data)) {
		if path := line[strings.LastIndex(line, ":")+1:]; path != "/" {
			found[path] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// groupLeft finds the directories of a cgroup on all hierarchies.
func groupLeft(t *testing.T, path string) []string {
	t.Helper()
	var left []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, err := filepath.Glob(pattern + path)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

// groupsAreInPlace: containers and monitor are below the pod's cgroup, our own or the client's, as units where systemd makes
// them; ours ends with the pod and the client's stays.
func groupsAreInPlace(t *testing.T, d *daemon) {
	units := d.systemdCgroups()
	clients := "/" + d.scope.Cgroup + "/kube/pod1"
	if units {
		clients = fmt.Sprintf("/%[1]s.slice/%[1]s-kube.slice/%[1]s-kube-pod1.slice", d.scope.Cgroup)
	}
	for _, parent := range []string{"", clients} {
		pod, config := d.runPod("tree", func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = parent })
		own := "/" + d.scope.Cgroup + "/pod" + pod
		switch {
		case units:
			own = cmp.Or(parent, "/"+d.scope.Cgroup+".slice") + "/pistis-" + pod + ".scope"
		case parent != "":
			own = parent
		}
		expect(t, "the pod's group", d.info(pod)["cgroup"], own)
		container, monitor := own+"/"+d.launch(pod, config, shell("c", forever)), own+"/pistis-"+pod
		if got := groupsOf(t, fmt.Sprint(d.process(pod, "monitorPid"))); !slices.Equal(got, []string{monitor}) {
			t.Errorf("the monitor is in %q, want %q", got, monitor)
		}
		if len(groupLeft(t, container)) == 0 {
			t.Errorf("there is no %s", container)
		}
		d.stopAndRemove(pod)
		gone := []string{container, monitor}
		if own != parent {
			gone = append(gone, own)
		}
		for _, path := range gone {
			if left := groupLeft(t, path); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		}
		if parent != "" && len(groupLeft(t, parent)) == 0 {
			t.Errorf("%s, which is the client's, has gone", parent)
		}
	}
	d.removeClients(clients, units)
}

// TestCgroupOfVM: a VM's processes are in a cgroup of its own, which goes with them.
func TestCgroupOfVM(t *testing.T) {
	d := startDaemon(t, "")
	if reason := notReady(d, "vm"); reason != "" {
		t.Skipf("SKIPPED, not tested: handler vm: %s", reason)
	}
	units := d.systemdCgroups()
	pod, _ := d.runPod("machine", nil)
	want := "/" + d.scope.Cgroup + "/pistis-" + pod
	if units {
		want = "/" + d.scope.Cgroup + ".slice/pistis-" + pod + ".scope"
	}
	for _, which := range []string{"shimPid", "vmmPid"} {
		if got := groupsOf(t, fmt.Sprint(d.process(pod, which))); !slices.Equal(got, []string{want}) {
			t.Errorf("%s is in %q, want %q", which, got, want)
		}
	}
	d.stopAndRemove(pod)
	if left := groupLeft(t, want); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	d.nothing("after the VM")
}

// limitMemory leaves a group so much room beyond what it uses. Where it has no memory controller of its own it is the group above it
// that is limited, as the kubelet does with a pod's.
func limitMemory(t *testing.T, group string, room int) {
	t.Helper()
	root, used, limit := "/sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes"
	if cgroupV2() {
		root, used, limit = "/sys/fs/cgroup", "memory.current", "memory.max"
		group = filepath.Dir(group)
		if err := os.WriteFile(filepath.Join(root, filepath.Dir(group), "cgroup.subtree_control"), []byte("+memory"), 0); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(root, group, used))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, group, limit), fmt.Append(nil, n+room), 0); err != nil {
		t.Fatal(err)
	}
}

// TestVMOutOfMemory: when the memory of a VM's cgroup is used up, pod and containers say so.
func TestVMOutOfMemory(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("hungry", nil)
	id := d.launch(pod, config, shell("main", forever))
	limitMemory(t, groupsOf(t, d.info(pod)["vmmPid"])[0], 16<<20)
	// It does not return: the VM is killed.
	_, _ = d.ExecSync(d.call(), &runtime.ExecSyncRequest{ContainerId: id, Cmd: []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"}})
	status := d.wait(id)
	expect(t, "the container's reason", status.Reason, "OOMKilled")
	if !strings.Contains(status.Message, "overhead") || !strings.Contains(status.Message, "signal 9") {
		t.Errorf("the container's message: %q", status.Message)
	}
	eventually(t, "the pod's reason", func() bool { return strings.Contains(d.info(pod)["info"], "memory of the pod's cgroup") })
	d.stopAndRemove(pod)
}

// TestCgroupParentOfOtherDriver: a parent that the kubelet names for the other driver is refused.
func TestCgroupParentOfOtherDriver(t *testing.T) {
	d := startDaemon(t, "")
	parent := "/kubepods.slice/kubepods-pod1.slice"
	if d.systemdCgroups() {
		parent = "/kubepods/pod1"
	}
	for _, handler := range []string{"runc", "vm"} {
		config := d.podConfig("other")
		config.Linux.CgroupParent = parent
		_, err := d.RunPodSandbox(d.call(), &runtime.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
		refused(t, handler, err, codes.InvalidArgument, "cgroup parent", "cgroupDriver")
	}
}

// removeClients removes groups that a test has named as a client does, up to the daemon's own.
func (d *daemon) removeClients(path string, units bool) {
	d.t.Helper()
	for ; strings.Count(path, "/") > 1; path = filepath.Dir(path) {
		if units {
			if out, err := exec.Command("systemctl", "stop", filepath.Base(path)).CombinedOutput(); err != nil {
				d.t.Errorf("stop %s: %v: %s", path, err, out)
			}
		}
		for _, dir := range groupLeft(d.t, path) {
			if err := os.Remove(dir); err != nil {
				d.t.Error(err)
			}
		}
	}
}
