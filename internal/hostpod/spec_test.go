package hostpod

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/oci"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/task"
)

func testPod(cfg sandbox.Config) pod {
	l := &Launcher{Options: Options{Dir: "/run/pods", CgroupParent: "pistis"}}
	netns := "/run/netns/p1"
	if cfg.HostNetwork {
		netns = ""
	}
	return l.pod(sandbox.LaunchRequest{ID: "p1", Config: cfg, NetNS: netns})
}

func generated(t *testing.T, mounts ...specs.Mount) *specs.Spec {
	t.Helper()
	spec, err := oci.Generate(oci.Input{ID: "c1", Name: "c", Command: []string{"/bin/x"}, Mounts: mounts})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestNamespaces(t *testing.T) {
	all := map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "/run/netns/p1", specs.UTSNamespace: "/run/pods/p1/uts", specs.IPCNamespace: "/run/pods/p1/ipc",
		specs.PIDNamespace: "", specs.MountNamespace: "", specs.CgroupNamespace: "",
	}
	with := func(change map[specs.LinuxNamespaceType]string) map[specs.LinuxNamespaceType]string {
		out := maps.Clone(all)
		maps.Copy(out, change)
		return out
	}
	without := func(types ...specs.LinuxNamespaceType) map[specs.LinuxNamespaceType]string {
		out := maps.Clone(all)
		for _, typ := range types {
			delete(out, typ)
		}
		return out
	}
	tests := []struct {
		name string
		cfg  sandbox.Config
		pid  task.PIDNamespace
		want map[specs.LinuxNamespaceType]string
	}{
		{name: "of the pod", want: all},
		{name: "host network", cfg: sandbox.Config{Namespaces: sandbox.Namespaces{HostNetwork: true}}, want: without(specs.NetworkNamespace, specs.UTSNamespace)},
		{name: "host IPC", cfg: sandbox.Config{Namespaces: sandbox.Namespaces{HostIPC: true}}, want: without(specs.IPCNamespace)},
		{name: "host PID", cfg: sandbox.Config{Namespaces: sandbox.Namespaces{HostPID: true}}, want: without(specs.PIDNamespace)},
		{name: "shared PID", cfg: sandbox.Config{Namespaces: sandbox.Namespaces{SharedPID: true}}, want: with(map[specs.LinuxNamespaceType]string{specs.PIDNamespace: "/run/pods/p1/pid"})},
		{name: "one's own in a pod that shares", cfg: sandbox.Config{Namespaces: sandbox.Namespaces{SharedPID: true}}, pid: task.PIDNamespace{Own: true}, want: all},
		{name: "target", pid: task.PIDNamespace{Container: "c0"}, want: with(map[specs.LinuxNamespaceType]string{specs.PIDNamespace: "/run/pods/p1/pid-c1"})},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := generated(t)
			testPod(test.cfg).finish(spec, task.CreateRequest{ID: "c1", PID: test.pid}, "/root", task.User{UID: 7})
			got := map[specs.LinuxNamespaceType]string{}
			for _, ns := range spec.Linux.Namespaces {
				got[ns.Type] = ns.Path
			}
			if !maps.Equal(got, test.want) {
				t.Errorf("got %v\nwant %v", got, test.want)
			}
			if spec.Root.Path != "/root" || spec.Process.User.UID != 7 || spec.Linux.CgroupsPath != "/pistis/podp1/c1" {
				t.Errorf("root %s, user %d, cgroup %s", spec.Root.Path, spec.Process.User.UID, spec.Linux.CgroupsPath)
			}
		})
	}
}

// fakeUnits remembers what was asked of systemd.
type fakeUnits struct{ said string }

func (f *fakeUnits) StartScope(_ context.Context, name, slice string, pid int) error {
	f.said = fmt.Sprintf("%s in %s of %d", name, slice, pid)
	return nil
}

func TestCgroups(t *testing.T) {
	const kubeScope = "/kubepods.slice/kubepods-pod9.slice/pistis-p1.scope/"
	for _, test := range []struct {
		systemd                    bool
		parent, container, monitor string
		own                        bool
		asked                      string
	}{
		{false, "", "/pistis/podp1/c1", "pistis/podp1/pistis-p1", true, ""},
		{false, "/kubepods/pod9", "/kubepods/pod9/c1", "kubepods/pod9/pistis-p1", false, ""},
		{true, "", "/pistis.slice/pistis-p1.scope/c1", "pistis.slice/pistis-p1.scope/pistis-p1", true, "pistis-p1.scope in pistis.slice of 7"},
		{true, "system.slice", "/system.slice/pistis-p1.scope/c1", "system.slice/pistis-p1.scope/pistis-p1", true, "pistis-p1.scope in system.slice of 7"},
		{true, "kubepods-pod9.slice", kubeScope + "c1", kubeScope[1:] + "pistis-p1", true, "pistis-p1.scope in kubepods-pod9.slice of 7"},
		{true, "/kubepods.slice/kubepods-pod9.slice", kubeScope + "c1", kubeScope[1:] + "pistis-p1", true, "pistis-p1.scope in kubepods-pod9.slice of 7"},
	} {
		l, systemd := &Launcher{Options: Options{Dir: "/run/pods", CgroupParent: "pistis"}}, &fakeUnits{}
		if test.systemd {
			l.CgroupParent, l.Units = "pistis.slice", systemd
		}
		cfg := sandbox.Config{CgroupParent: test.parent}
		if err := l.Validate(cfg); err != nil {
			t.Errorf("%q: %v", test.parent, err)
		}
		p := l.pod(sandbox.LaunchRequest{ID: "p1", Config: cfg})
		if got := p.cgroupsPath("c1"); got != test.container {
			t.Errorf("%q: container's group %q, want %q", test.parent, got, test.container)
		}
		if got := p.monitorGroup(); got != test.monitor {
			t.Errorf("%q: monitor's group %q, want %q", test.parent, got, test.monitor)
		}
		if p.own != test.own {
			t.Errorf("%q: own is %t", test.parent, p.own)
		}
		if adopt := l.adopt(t.Context(), p); adopt != nil {
			if err := adopt(7); err != nil {
				t.Error(err)
			}
		}
		if systemd.said != test.asked {
			t.Errorf("%q: systemd was asked for %q, want %q", test.parent, systemd.said, test.asked)
		}
	}
	l := &Launcher{Options: Options{Units: &fakeUnits{}}}
	if err := l.Validate(sandbox.Config{CgroupParent: "/kubepods/pod9"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a path for systemd: %v", err)
	}
}

func TestFiles(t *testing.T) {
	spec := generated(t, specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: "/kubelet/hosts", Options: []string{"rbind"}})
	spec.Root.Readonly = true
	testPod(sandbox.Config{}).addFiles(spec)
	got := map[string]specs.Mount{}
	for _, m := range spec.Mounts {
		if _, twice := got[m.Destination]; twice {
			t.Errorf("two mounts at %s", m.Destination)
		}
		got[m.Destination] = m
	}
	for at, source := range map[string]string{"/etc/hosts": "/kubelet/hosts", "/etc/hostname": "/run/pods/p1/hostname", "/etc/resolv.conf": "/run/pods/p1/resolv.conf", "/dev/shm": "/run/pods/p1/shm"} {
		if got[at].Source != source {
			t.Errorf("%s comes from %q, want %q", at, got[at].Source, source)
		}
	}
	if !slices.Contains(got["/etc/hostname"].Options, "ro") || !slices.Contains(got["/dev/shm"].Options, "rw") {
		t.Errorf("hostname %v, shm %v with a read-only root", got["/etc/hostname"].Options, got["/dev/shm"].Options)
	}
}

func TestClamp(t *testing.T) {
	c := &clamp{bounding: []string{"CAP_CHOWN"}, minOOMScore: 5, log: slog.New(slog.DiscardHandler), said: map[string]bool{}}
	spec := generated(t)
	score := -997
	spec.Process.OOMScoreAdj = &score
	spec.Process.Capabilities.Bounding = []string{"CAP_CHOWN", "CAP_SYS_RESOURCE"}
	if err := c.apply(spec); err != nil {
		t.Fatal(err)
	}
	if got := spec.Process.Capabilities.Bounding; !slices.Equal(got, []string{"CAP_CHOWN"}) || *spec.Process.OOMScoreAdj != 5 {
		t.Errorf("capabilities %v, score %d", got, *spec.Process.OOMScoreAdj)
	}
	limit, more := int64(100), int64(200)
	tests := []struct {
		name string
		r    specs.LinuxResources
		ok   bool
	}{
		{"unified on v1", specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}, false},
		{"huge pages that are not there", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}}, false},
		{"no huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}}, true},
		{"swap that is not counted", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &more}}, false},
		{"no swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}, true},
	}
	for _, test := range tests {
		if err := c.resources(&test.r); (err == nil) != test.ok {
			t.Errorf("%s: %v", test.name, err)
		}
		if test.ok && (test.r.HugepageLimits != nil || test.r.Memory != nil && test.r.Memory.Swap != nil) {
			t.Errorf("%s: left in", test.name)
		}
	}
}

func TestSysctls(t *testing.T) {
	for name, want := range map[string]bool{
		"net.ipv4.ip_forward": true, "net/ipv4/conf/eth0.1/rp_filter": true, "kernel.shm_rmid_forced": true, "kernel.msgmax": true, "fs.mqueue.msg_max": true,
		"kernel.sem": true, "kernel.panic": false, "vm.swappiness": false, "kernel.hostname": false,
	} {
		if err := sysctlAllowed(name, sandbox.Config{}); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, cfg := range map[string]sandbox.Namespaces{"net.core.somaxconn": {HostNetwork: true}, "kernel.sem": {HostIPC: true}} {
		if err := sysctlAllowed(name, sandbox.Config{Namespaces: cfg}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s on the host: %v", name, err)
		}
	}
	for name, want := range map[string]string{"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/conf/eth0.1/x": "net/ipv4/conf/eth0.1/x"} {
		if got := sysctlPath(name); got != want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
