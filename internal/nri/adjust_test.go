package nri

import (
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func spec() *specs.Spec {
	shares := uint64(100)
	return &specs.Spec{
		Process: &specs.Process{Args: []string{"old"}, Env: []string{"KEEP=1", "DROP=1", "SET=1"}},
		Mounts:  []specs.Mount{{Destination: "/old", Source: "/tmp"}, {Destination: "/gone", Source: "/tmp"}},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}, Unified: map[string]string{"a": "1"}},
			Devices:   []specs.LinuxDevice{{Path: "/dev/gone"}}, Sysctl: map[string]string{"net.a": "1"},
		},
		Annotations: map[string]string{"old": "1"},
	}
}

func TestAdjust(t *testing.T) {
	a := &api.ContainerAdjustment{}
	a.AddAnnotation("new", "2")
	a.RemoveAnnotation("old")
	a.SetArgs([]string{"new", "args"})
	a.AddEnv("SET", "2")
	a.RemoveEnv("DROP")
	a.AddMount(&api.Mount{Destination: "/new", Source: "/tmp", Type: "bind", Options: []string{"rbind", "ro"}})
	a.RemoveMount("/gone")
	a.AddDevice(&api.LinuxDevice{Path: "/dev/null0", Type: "c", Major: 1, Minor: 3})
	a.RemoveDevice("/dev/gone")
	a.AddRlimit("RLIMIT_NOFILE", 10, 5)
	a.AddHooks(&api.Hooks{Prestart: []*api.Hook{{Path: "/p"}}, Poststart: []*api.Hook{{Path: "/q"}}, Poststop: []*api.Hook{{Path: "/r"}}, CreateRuntime: []*api.Hook{{Path: "/s"}}})
	a.SetLinuxCPUQuota(5000)
	a.SetLinuxCPUPeriod(10000)
	a.SetLinuxCPUSetCPUs("0")
	a.SetLinuxMemoryLimit(1 << 20)
	a.SetLinuxMemorySwap(2 << 20)
	a.SetLinuxPidLimits(7)
	a.AddLinuxHugepageLimit("2MB", 4)
	a.AddLinuxUnified("b", "2")
	a.SetLinuxSysctl("net.b", "2")
	score := 5
	a.SetLinuxOomScoreAdj(&score)
	s := spec()
	if err := adjust(s, a, false); err != nil {
		t.Fatal(err)
	}
	r := s.Linux.Resources
	if s.Annotations["new"] != "2" || len(s.Annotations) != 1 || !slices.Equal(s.Process.Args, []string{"new", "args"}) ||
		!slices.Contains(s.Process.Env, "SET=2") || !slices.Contains(s.Process.Env, "KEEP=1") || len(s.Process.Env) != 2 {
		t.Errorf("annotations %v, args %v, env %v", s.Annotations, s.Process.Args, s.Process.Env)
	}
	if len(s.Mounts) != 2 || s.Mounts[0].Destination != "/new" || len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/null0" || len(r.Devices) != 1 {
		t.Errorf("mounts %v, devices %v", s.Mounts, s.Linux.Devices)
	}
	if h := s.Hooks; len(h.Prestart)+len(h.Poststart)+len(h.Poststop)+len(h.CreateRuntime) != 4 { //nolint:staticcheck // see editor
		t.Errorf("hooks %+v", h)
	}
	if *r.CPU.Shares != 100 || *r.CPU.Quota != 5000 || *r.CPU.Period != 10000 || r.CPU.Cpus != "0" || *r.Memory.Limit != 1<<20 || *r.Memory.Swap != 2<<20 ||
		*r.Pids.Limit != 7 || len(r.HugepageLimits) != 1 || r.Unified["a"] != "1" || r.Unified["b"] != "2" {
		t.Errorf("resources %+v", r)
	}
	if s.Linux.Sysctl["net.b"] != "2" || *s.Process.OOMScoreAdj != 5 || len(s.Process.Rlimits) != 1 {
		t.Errorf("%+v %+v", s.Linux.Sysctl, s.Process)
	}
}

// TestEmptyAdjustment: NRI hands one over when no plugin wants anything, with all of its parts.
func TestEmptyAdjustment(t *testing.T) {
	a := &api.ContainerAdjustment{Hooks: &api.Hooks{}, Linux: &api.LinuxContainerAdjustment{
		Resources: &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{}}, Rdt: &api.LinuxRdt{},
	}}
	for _, vm := range []bool{true, false} {
		s := spec()
		if err := adjust(s, a, vm); err != nil {
			t.Error(err)
		}
		if s.Hooks != nil || s.Linux.IntelRdt != nil {
			t.Errorf("something was made of nothing: %+v", s)
		}
	}
}

func TestRefusedAdjustments(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*api.ContainerAdjustment)
		vmOnly bool
	}{
		"cgroup":     {func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/mine") }, false},
		"namespace":  {func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "pid"}) }, false},
		"netdev":     {func(a *api.ContainerAdjustment) { a.AddLinuxNetDevice("eth1", &api.LinuxNetDevice{Name: "net1"}) }, false},
		"block I/O":  {func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("gold") }, false},
		"RDT":        {func(a *api.ContainerAdjustment) { a.SetLinuxRDTClass("gold") }, false},
		"CDI":        {func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "a/b=c"}) }, true},
		"scheduling": {func(a *api.ContainerAdjustment) { a.SetLinuxScheduler(&api.LinuxScheduler{}) }, true},
	} {
		a := &api.ContainerAdjustment{}
		test.change(a)
		if err := adjust(spec(), a, true); !errdefs.IsNotImplemented(err) {
			t.Errorf("%s in a VM: %v", name, err)
		}
		if err := adjust(spec(), a, false); errdefs.IsNotImplemented(err) == test.vmOnly {
			t.Errorf("%s on the host: %v", name, err)
		}
	}
}
