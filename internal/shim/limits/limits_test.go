package limits

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// testLimits is of a VM with so many processors and MiB, on a host with 16 processors and two memory nodes.
func testLimits(vcpus uint32, memory uint64) *Pod {
	p := New(vcpus, memory*mib, 128*mib)
	p.host = func() (topology, error) {
		cpus, err := parseList("0-15")
		return topology{cpus: cpus, nodes: []int{0, 1}}, err
	}
	return p
}

func memory(limit int64) *specs.LinuxResources {
	limit *= mib
	return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
}

func quota(milli int64) *specs.LinuxResources {
	period, quota := uint64(50_000), milli*50
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
}

func cpuset(cpus string) *specs.LinuxResources {
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: cpus}}
}

// TestGrowthIsBounded: an update may not promise what the VM does not have.
func TestGrowthIsBounded(t *testing.T) {
	p := testLimits(2, 640) // 512 MiB for containers
	for id, r := range map[string]*specs.LinuxResources{"a": memory(256), "b": memory(128), "wide": memory(-1)} {
		if _, err := p.Add(id, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		id   string
		to   *specs.LinuxResources
		says string // of the refusal
	}{
		{"b", memory(256), ""},
		{"b", memory(257), "513 MiB"},
		{"wide", memory(1), "513 MiB"},
		{"a", memory(200), ""},
		{"wide", memory(1), ""},
		{"wide", memory(-1), ""},
		{"a", quota(1500), ""},
		{"b", quota(501), "2.001 processors"},
		{"b", quota(500), ""},
		{"a", quota(1501), "2.001 processors"},
		{"a", quota(-1), ""},
	} {
		_, _, err := p.Change(step.id, step.to)
		if (err == nil) != (step.says == "") || err != nil && (!errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), step.says)) {
			t.Errorf("%s: %v, want %q", step.id, err, step.says)
		}
	}
	_, undo, err := p.Change("a", memory(256))
	if err != nil {
		t.Fatal(err)
	}
	undo()
	if _, _, err := p.Change("b", memory(312)); err != nil {
		t.Errorf("what was taken back counts still: %v", err)
	}
	// A limit that was wider than the VM from the beginning may shrink to one that still is.
	if _, err := p.Add("huge", memory(4096)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.Change("huge", memory(2048)); err != nil {
		t.Errorf("a limit that shrinks: %v", err)
	}
	p.Remove("huge")
}

// TestVirtualProcessors: containers that share processors of the host share virtual ones, others do not.
func TestVirtualProcessors(t *testing.T) {
	p := testLimits(4, 1024)
	for _, c := range []struct{ id, host, guest string }{
		{"pool", "0-15", "0-3"},
		{"a", "2,3", "0-1"},
		{"b", "8-9", "2-3"},
		{"beside-a", "3", "1"},
		{"late", "4-6", "0-2"},  // there are no others left
		{"mixed", "2,4", "0,3"}, // the same one stands for both
	} {
		guest, err := p.Add(c.id, cpuset(c.host))
		if err != nil || guest.CPU.Cpus != c.guest {
			t.Errorf("%s: %s of the host is %+v in the guest (%v), want %s", c.id, c.host, guest.CPU, err, c.guest)
		}
	}
	r := cpuset("2")
	r.CPU.Mems = "0-1"
	guest, undo, err := p.Change("a", r)
	if err != nil || guest.CPU.Cpus != "0" || guest.CPU.Mems != "" || r.CPU.Mems == "" {
		t.Errorf("update: %+v, %v", guest.CPU, err)
	}
	if got := p.hostCPUs(); len(got) != 16 {
		t.Errorf("the VM runs on %v", got)
	}
	p.Remove("pool")
	if got := formatList(p.hostCPUs()); got != "2-6,8-9" {
		t.Errorf("without the pool it runs on %s", got)
	}
	undo()
	if _, err := p.Add("free", memory(1)); err != nil || p.hostCPUs() != nil {
		t.Errorf("with a container that may run anywhere: %v, %v", p.hostCPUs(), err)
	}
	for bad, is := range map[string]func(error) bool{
		"16": errdefs.IsInvalidArgument, "x": errdefs.IsInvalidArgument, "3-2": errdefs.IsInvalidArgument, "0-99999999": errdefs.IsInvalidArgument, "1,": errdefs.IsInvalidArgument,
	} {
		if _, err := p.Add("bad", cpuset(bad)); !is(err) {
			t.Errorf("cpus %q: %v", bad, err)
		}
	}
	for mems, is := range map[string]func(error) bool{"1": errdefs.IsNotImplemented, "y": errdefs.IsInvalidArgument} {
		if _, err := p.Add("bad", &specs.LinuxResources{CPU: &specs.LinuxCPU{Mems: mems}}); !is(err) {
			t.Errorf("mems %q: %v", mems, err)
		}
	}
}

func TestLists(t *testing.T) {
	for in, want := range map[string]string{"0": "0", "3,1,2\n": "1-3", "0-3,6": "0-3,6", "5,5,7-8": "5,7-8"} {
		set, err := parseList(in)
		if err != nil || formatList(set) != want {
			t.Errorf("%q: %v, %v", in, set, err)
		}
	}
}

// TestConfine confines a process with several threads, and frees it again.
func TestConfine(t *testing.T) {
	host, err := hostTopology()
	if err != nil {
		t.Fatal(err)
	}
	var ours unix.CPUSet // what the machine lets this process have
	if err := unix.SchedGetaffinity(0, &ours); err != nil {
		t.Fatal(err)
	}
	last := slices.IndexFunc(host.cpus, ours.IsSet)
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	p := New(1, 512*mib, 0)
	confined := func(want unix.CPUSet) {
		t.Helper()
		if err := p.Apply(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		var got unix.CPUSet
		if err := unix.SchedGetaffinity(cmd.Process.Pid, &got); err != nil || got != want {
			t.Errorf("affinity %v, %v, want %v", got, err, want)
		}
	}
	confined(ours)
	if _, err := p.Add("c", cpuset(formatList(host.cpus[last:last+1]))); err != nil {
		t.Fatal(err)
	}
	var one unix.CPUSet
	one.Set(host.cpus[last])
	confined(one)
	p.Remove("c")
	confined(ours)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := confine(cmd.Process.Pid, []int{0}); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}
