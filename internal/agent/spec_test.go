package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func minimal() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Args: []string{"sh"}, Cwd: "/"}, Linux: &specs.Linux{}}
}

func TestAdapt(t *testing.T) {
	spec := minimal()
	spec.Hostname, spec.Domainname = "pod", "domain"
	spec.Root = &specs.Root{Path: "/host/path", Readonly: true}
	spec.Linux.CgroupsPath = "/kubepods/x"
	spec.Linux.Sysctl = map[string]string{"net.a": "1"}
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.TimeNamespace}}
	spec.Mounts = []specs.Mount{
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm"},
		{Destination: "/etc/hosts/", Type: "bind", Source: "/own"},
	}
	pod := []specs.Mount{
		{Destination: "/etc/hosts", Type: "bind", Source: "/run/hosts"},
		{Destination: "/etc/hostname", Type: "bind", Source: "/run/hostname", Options: []string{"bind"}},
		{Destination: "/dev/shm", Type: "bind", Source: "/run/shm", Options: []string{"bind"}},
	}
	sysctls, err := adapt(spec, placement{id: "c", root: "/merged", pidNamespace: "/proc/7/ns/pid", mounts: pod})
	if err != nil {
		t.Fatal(err)
	}
	want := minimal()
	want.Root = &specs.Root{Path: "/merged", Readonly: true}
	want.Linux.CgroupsPath = "/pistis/c"
	want.Linux.Namespaces = []specs.LinuxNamespace{
		{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.PIDNamespace, Path: "/proc/7/ns/pid"}, {Type: specs.TimeNamespace},
	}
	want.Mounts = []specs.Mount{
		pod[2], {Destination: "/etc/hosts/", Type: "bind", Source: "/own"},
		{Destination: "/etc/hostname", Type: "bind", Source: "/run/hostname", Options: []string{"bind", "ro"}},
	}
	if !reflect.DeepEqual(spec, want) {
		t.Errorf("got  %s\nwant %s", marshal(t, spec), marshal(t, want))
	}
	if sysctls["net.a"] != "1" || len(pod[1].Options) != 1 {
		t.Errorf("sysctls %v, the pod's options %v", sysctls, pod[1].Options)
	}
}

func TestOwnShm(t *testing.T) {
	own := []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: "/own"}}
	got := addMounts(own, []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: "/pod"}}, false)
	if len(got) != 1 || got[0].Source != "/own" {
		t.Errorf("got %v", got)
	}
}

func TestSpecRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*specs.Spec)
		is     func(error) bool
	}{
		"no process":     {func(s *specs.Spec) { s.Process = nil }, errdefs.IsInvalidArgument},
		"no args":        {func(s *specs.Spec) { s.Process.Args = nil }, errdefs.IsInvalidArgument},
		"hooks":          {func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} }, errdefs.IsNotImplemented},
		"id mappings":    {func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, errdefs.IsNotImplemented},
		"user namespace": {func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}} }, errdefs.IsNotImplemented},
		"host path": {func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/var/run/netns/x"}}
		}, errdefs.IsInvalidArgument},
	} {
		spec := minimal()
		tt.change(spec)
		parsed, err := parseSpec(marshal(t, spec))
		if err == nil {
			_, err = adapt(parsed, placement{id: "c"})
		}
		if !tt.is(err) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := parseSpec([]byte(`{"process":{"args":["x"]}}`)); err != nil {
		t.Errorf("the least spec: %v", err)
	}
	if _, err := parseSpec([]byte("{")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no JSON: %v", err)
	}
}

func TestAllDevices(t *testing.T) {
	major := int64(1)
	for _, tt := range []struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		{nil, false},
		{[]specs.LinuxDeviceCgroup{{Access: "rwm"}}, false},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, true},
		{[]specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Access: "rwm", Type: "a"}}, true},
		{[]specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm", Type: "c", Major: &major}}, false},
	} {
		if got := allDevices(&specs.LinuxResources{Devices: tt.rules}); got != tt.want {
			t.Errorf("%v: got %v", tt.rules, got)
		}
	}
}

func TestAddDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED, not tested: device nodes need root")
	}
	dev := t.TempDir()
	for _, dir := range []string{"pts", "input"} {
		if err := os.Mkdir(filepath.Join(dev, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"sda", "tty", "pts/0", "input/mouse"} {
		if err := unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
			t.Skipf("SKIPPED, not tested: %v", err)
		}
	}
	linux := &specs.Linux{Devices: []specs.LinuxDevice{{Path: "/dev/sda", Type: "b"}}}
	if err := addDevices(linux, dev); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, d := range linux.Devices {
		paths = append(paths, d.Type+d.Path)
	}
	if !slices.Equal(paths, []string{"b/dev/sda", "c/dev/input/mouse"}) {
		t.Errorf("got %v", paths)
	}
}

func TestExecProcess(t *testing.T) {
	own := specs.Process{Cwd: "/work", Env: []string{"PATH=/bin", "HOME=/h"}, NoNewPrivileges: true}
	p, err := execProcess([]byte(`{"args":["x"]}`), own)
	if err != nil || p.Cwd != "/work" || !slices.Equal(p.Env, own.Env) || !p.NoNewPrivileges {
		t.Errorf("got %+v, %v", p, err)
	}
	p, err = execProcess([]byte(`{"args":["x"],"cwd":"/","env":["A=b"]}`), own)
	if err != nil || p.Cwd != "/" || !slices.Equal(p.Env, []string{"A=b"}) {
		t.Errorf("got %+v, %v", p, err)
	}
	if inheritHome(p, own); !slices.Equal(p.Env, []string{"A=b", "HOME=/h"}) {
		t.Errorf("home: %v", p.Env)
	}
	for _, text := range []string{"", "{}", `{"args":[]}`, `[`} {
		if _, err := execProcess([]byte(text), own); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":               "net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding",
		"kernel.shmmax":                     "kernel/shmmax",
		"../../etc/passwd":                  "",
		"net.ipv4.//....passwd":             "",
		"/kernel/x":                         "",
		"":                                  "",
		"kernel..x":                         "",
	} {
		got, err := sysctlPath(key)
		if got != want || (want == "") != errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %q, %v; want %q", key, got, err, want)
		}
	}
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"process":{"args":["x"]},"linux":{"namespaces":[{"type":"pid"}]},"mounts":[{"destination":"/dev/shm","type":"tmpfs"}]}`))
	f.Add([]byte(`{"process":{"args":["x"]},"root":null,"hooks":{},"linux":{"resources":{"devices":[{}]}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		spec, err := parseSpec(text)
		if err != nil {
			return
		}
		if allDevices(spec.Linux.Resources) {
			return // lists this machine's devices
		}
		if _, err := adapt(spec, placement{id: "c", root: "/r"}); err == nil && (spec.Root.Path != "/r" || spec.Linux.CgroupsPath != "/pistis/c") {
			t.Errorf("the spec has its own way: %+v", spec)
		}
	})
}

func FuzzSysctlPath(f *testing.F) {
	f.Add("net.ipv4.ip_forward")
	f.Add("a/../b")
	f.Fuzz(func(t *testing.T, key string) {
		if path, err := sysctlPath(key); err == nil && !filepath.IsLocal(path) {
			t.Errorf("%q leads out: %q", key, path)
		}
	})
}
