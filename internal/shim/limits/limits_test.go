package limits

import (
	"maps"
	"math"
	"os/exec"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// testLimits is of a VM with so many processors, on a host with 16 processors and two memory nodes.
func testLimits(vcpus *int) *Pod {
	p := New(func() int { return *vcpus })
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

// TestSums: a change says what the VM must have room for, and what takes it back.
func TestSums(t *testing.T) {
	vcpus := 2
	p := testLimits(&vcpus)
	for id, r := range map[string]*specs.LinuxResources{"a": memory(256), "b": memory(128), "wide": memory(-1)} {
		if _, err := p.Add(id, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []struct {
		id      string
		to      *specs.LinuxResources
		grows   Sum
		shrinks bool
	}{
		{"b", memory(256), Sum{Memory: 512 * mib}, false},
		{"wide", memory(1), Sum{Memory: 513 * mib}, false},
		{"a", memory(200), Sum{}, true},
		{"wide", memory(-1), Sum{}, true},
		{"a", quota(1500), Sum{MilliCPU: 1500}, false},
		{"b", quota(501), Sum{MilliCPU: 2001}, false},
		{"b", quota(500), Sum{}, true},
		{"a", quota(-1), Sum{}, true},
		{"a", cpuset("1"), Sum{}, false},
	} {
		c, err := p.Change(step.id, step.to)
		if err != nil || c.Grows != step.grows || c.Shrinks != step.shrinks {
			t.Errorf("%s: %+v, %v, want %+v, %v", step.id, c, err, step.grows, step.shrinks)
		}
	}
	before := p.Sum()
	c, err := p.Change("a", memory(300))
	if err != nil || *c.Guest.Memory.Limit != 300*mib || *c.Restore.Memory.Limit != 200*mib || c.Restore.CPU != nil {
		t.Errorf("change: %+v, %v", c, err)
	}
	if c.Undo(); p.Sum() != before {
		t.Errorf("what was taken back counts still: %+v, want %+v", p.Sum(), before)
	}
	c, err = p.Change("b", &specs.LinuxResources{CPU: quota(700).CPU, Memory: memory(10).Memory})
	if err != nil || *c.Restore.CPU.Quota != 25_000 || *c.Restore.CPU.Period != 50_000 || *c.Restore.Memory.Limit != 256*mib {
		t.Errorf("change of both: %+v, %v", c.Restore, err)
	}
	if c, err = p.Change("wide", quota(100)); err != nil || *c.Restore.CPU.Quota != -1 {
		t.Errorf("what had no limit gets none back: %+v, %v", c.Restore, err)
	}
}

// TestGone: a container that is gone meanwhile does not count again.
func TestGone(t *testing.T) {
	vcpus := 1
	p := testLimits(&vcpus)
	if _, err := p.Change("a", memory(1)); !errdefs.IsNotFound(err) {
		t.Errorf("change of a container that is not there: %v", err)
	}
	if _, err := p.Add("a", memory(1)); err != nil {
		t.Fatal(err)
	}
	c, err := p.Change("a", memory(2))
	if err != nil {
		t.Fatal(err)
	}
	p.Remove("a")
	if c.Undo(); p.Sum() != (Sum{}) {
		t.Errorf("it counts: %+v", p.Sum())
	}
}

// TestHugeLimits: limits beyond all bounds are not small together.
func TestHugeLimits(t *testing.T) {
	vcpus := 1
	p := testLimits(&vcpus)
	most, period := int64(math.MaxInt64), uint64(1)
	huge := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &most}, CPU: &specs.LinuxCPU{Quota: &most, Period: &period}}
	for _, id := range []string{"a", "b", "c"} {
		if _, err := p.Add(id, huge); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.Sum(); got != (Sum{mostSum, mostSum}) {
		t.Errorf("%+v", got)
	}
}

// TestProcessorsThatGo: containers are not confined to processors that the VM has no longer, and it keeps those in use.
func TestProcessorsThatGo(t *testing.T) {
	vcpus := 4
	p := testLimits(&vcpus)
	for _, c := range []struct{ id, host, guest string }{{"a", "2", "0"}, {"b", "3-4", "1-2"}} {
		if guest, err := p.Add(c.id, cpuset(c.host)); err != nil || guest.CPU.Cpus != c.guest {
			t.Fatalf("%s: %+v, %v", c.id, guest, err)
		}
	}
	if n := p.Confined(); n != 3 {
		t.Errorf("%d processors are in use", n)
	}
	p.Remove("b")
	if n := p.Confined(); n != 1 {
		t.Errorf("%d processors are in use without the second", n)
	}
	vcpus = 2
	if guest, err := p.Add("c", cpuset("4")); err != nil || guest.CPU.Cpus != "0" {
		t.Errorf("after the VM has shrunk: %+v, %v", guest.CPU, err)
	}
}

// TestProcessorsThatCome: a container whose set is larger than the VM gets more of it when the VM grows.
func TestProcessorsThatCome(t *testing.T) {
	vcpus := 1
	p := testLimits(&vcpus)
	for id, set := range map[string]string{"a": "2-4", "b": "3", "any": ""} {
		if _, err := p.Add(id, cpuset(set)); err != nil {
			t.Fatal(err)
		}
	}
	outgrown := func(want map[string]string) {
		t.Helper()
		got := map[string]string{}
		for id, r := range p.Outgrown() {
			got[id] = r.CPU.Cpus
		}
		if !maps.Equal(got, want) {
			t.Errorf("outgrown with %d processors: %v, want %v", vcpus, got, want)
		}
	}
	outgrown(nil)
	vcpus = 2
	outgrown(map[string]string{"a": "0-1"})
	outgrown(map[string]string{"a": "0-1"}) // as nobody has done it
	undone, err := p.Change("a", cpuset("3"))
	if err != nil {
		t.Fatal(err)
	}
	undone.Undo()
	outgrown(map[string]string{"a": "0-1"}) // nor was it by what was not done either
	p.Given("a", "0-1")
	p.Given("gone", "0-1")
	outgrown(nil)
	c, err := p.Change("a", cpuset("2"))
	if err != nil {
		t.Fatal(err)
	}
	outgrown(nil)
	c.Undo()
	outgrown(nil)
	vcpus = 4
	outgrown(map[string]string{"a": "0-2"})
}

// TestVirtualProcessors: containers that share processors of the host share virtual ones, others do not.
func TestVirtualProcessors(t *testing.T) {
	vcpus := 4
	p := testLimits(&vcpus)
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
	c, err := p.Change("a", r)
	if err != nil || c.Guest.CPU.Cpus != "0" || c.Guest.CPU.Mems != "" || r.CPU.Mems == "" || c.Restore.CPU.Cpus != "0-1" {
		t.Errorf("update: %+v, %v", c, err)
	}
	if got := p.hostCPUs(); len(got) != 16 {
		t.Errorf("the VM runs on %v", got)
	}
	p.Remove("pool")
	if got := formatList(p.hostCPUs()); got != "2-6,8-9" {
		t.Errorf("without the pool it runs on %s", got)
	}
	c.Undo()
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
	p := New(func() int { return 2 })
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
