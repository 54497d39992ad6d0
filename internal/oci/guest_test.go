package oci

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// step is one field on the way from specs.Spec to a leaf.
type step struct {
	name  string // Type.Field
	index int
}

// leafs calls visit for every field of typ that the table does not descend into, and for each that it lacks.
func leafs(typ reflect.Type, table map[string]treatment, at []step, visit func([]step, treatment)) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		here := append(at[:len(at):len(at)], step{typ.Name() + "." + f.Name, i})
		what := table[here[len(here)-1].name]
		inner := f.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && what != refuse && what != 0 {
			leafs(inner, table, here, visit)
			continue
		}
		visit(here, what)
	}
}

func baseSpec() *specs.Spec {
	return &specs.Spec{Version: "1.2.0", Process: &specs.Process{}, Root: &specs.Root{}, Linux: &specs.Linux{}}
}

// reach returns the field at the end of the path, making what is missing on the way.
func reach(spec *specs.Spec, path []step, alloc bool) reflect.Value {
	v := reflect.ValueOf(spec).Elem()
	for i, s := range path {
		v = v.Field(s.index)
		if i == len(path)-1 {
			return v
		}
		for v.Kind() != reflect.Struct {
			if alloc && (v.Kind() == reflect.Pointer && v.IsNil() || v.Kind() == reflect.Slice && v.Len() == 0) {
				v.Set(element(v.Type()))
			}
			if v.Kind() == reflect.Slice {
				if v.Len() == 0 {
					return reflect.Value{}
				}
				v = v.Index(0)
				continue
			}
			if v = v.Elem(); !v.IsValid() {
				return v
			}
		}
	}
	return v
}

// element is a pointer to or a slice of one element that is acceptable by itself.
func element(typ reflect.Type) reflect.Value {
	if typ.Kind() == reflect.Pointer {
		return reflect.New(typ.Elem())
	}
	s := reflect.MakeSlice(typ, 1, 1)
	switch e := s.Index(0).Addr().Interface().(type) {
	case *specs.Mount:
		*e = specs.Mount{Destination: "/mnt", Type: "tmpfs"}
	case *specs.LinuxDevice:
		*e = specs.LinuxDevice{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}
	}
	return s
}

// fill sets v to something that is not its zero value.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("/sample")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(7)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		fill(v.Field(0))
	case reflect.Interface:
		v.Set(reflect.ValueOf("sample"))
	}
}

func TestEveryFieldIsCarriedTranslatedOrRefused(t *testing.T) {
	table := guestFields
	seen := map[string]bool{}
	leafs(reflect.TypeFor[specs.Spec](), table, nil, func(path []step, what treatment) {
		for _, s := range path {
			seen[s.name] = true
		}
		name := path[len(path)-1].name
		t.Run(name, func(t *testing.T) {
			spec := baseSpec()
			fill(reach(spec, path, true))
			before := mustJSON(t, spec)
			guest, err := ForGuest(spec)
			if mustJSON(t, spec) != before {
				t.Error("the input was changed")
			}
			switch what {
			case 0:
				t.Errorf("%s is not in guestFields: decide whether a guest can honour it", name)
			case refuse:
				if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), name) {
					t.Errorf("not refused by name: %v", err)
				}
			case carry:
				if err != nil {
					t.Fatal(err)
				}
				want, got := reach(spec, path, false), reach(guest, path, false)
				if !got.IsValid() || !reflect.DeepEqual(got.Interface(), want.Interface()) {
					t.Errorf("not carried: %v", mustJSON(t, guest))
				}
			}
		})
	})
	for name := range table {
		if !seen[name] {
			t.Errorf("guestFields has %s, which the runtime spec has not, or only inside of something refused", name)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestForGuestTranslates(t *testing.T) {
	yes, no, zero := true, false, int64(0)
	spec := baseSpec()
	spec.Hostname, spec.Domainname = "pod", "example"
	spec.Root.Path = "/var/lib/somewhere"
	spec.Process.ApparmorProfile = "cri-containerd.apparmor.d"
	spec.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/sys/fs/cgroup", Type: "cgroup2", Source: "cgroup2", Options: []string{"ro"}},
		{Destination: "/dev/shm", Type: "bind", Source: "/run/x/sandboxes/" + strings.Repeat("0", 64) + "/shm", Options: []string{"rbind"}},
		{Destination: "/etc/hosts", Type: "bind", Source: "/var/hosts", Options: []string{"rbind"}},
		{Destination: "/etc//resolv.conf", Source: "/var/resolv", Options: []string{"bind"}},
		{Destination: "/data", Source: "/srv/../srv/x"},
	}
	spec.Linux.CgroupsPath = "/kubepods/x"
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: "pid"}, {Type: "network", Path: "/proc/1/ns/net"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}}
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	spec.Linux.Resources = &specs.LinuxResources{
		Memory:         &specs.LinuxMemory{DisableOOMKiller: &no, UseHierarchy: &yes},
		CPU:            &specs.LinuxCPU{RealtimeRuntime: &zero},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}},
	}
	guest, err := ForGuest(spec)
	if err != nil {
		t.Fatal(err)
	}
	want := baseSpec()
	want.Version = specs.Version
	want.Root.Path = "rootfs"
	want.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777"}},
		{Destination: "/etc/hosts", Type: "bind", Source: "/var/hosts", Options: []string{"rbind"}},
		{Destination: "/etc//resolv.conf", Type: "bind", Source: "/var/resolv", Options: []string{"bind"}},
		{Destination: "/data", Type: "bind", Source: "/srv/x", Options: []string{"rbind"}},
	}
	want.Linux.Namespaces = []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}}
	want.Linux.Devices = spec.Linux.Devices
	want.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}}
	if got, want := mustJSON(t, guest), mustJSON(t, want); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestShmOfTheManager: what a container manager makes for /dev/shm becomes the guest's, what somebody wants there is a volume.
func TestShmOfTheManager(t *testing.T) {
	id := strings.Repeat("0123456789abcdef", 4)
	for source, volume := range map[string]bool{
		"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/" + id + "/shm":             false,
		"/run/k3s/containerd/io.containerd.grpc.v1.cri/sandboxes/" + id + "/shm":         false,
		"/run/containers/storage/overlay-containers/" + id + "/userdata/shm":             false,
		"/home/a/.local/share/containers/storage/vfs-containers/" + id + "/userdata/shm": false,
		"/var/lib/docker/containers/" + id + "/mounts/shm/":                              false,
		"/dev/shm":                        true,
		"/shm":                            true,
		"/srv/data":                       true,
		"/srv/data/shm":                   true, // a directory that happens to be called so
		"/srv/mounts/shm":                 true,
		"/srv/sandboxes/ab12/shm":         true,
		"/srv/" + id + "/shm":             true,
		"/srv/containers/" + id + "/shm/": true,
		"/srv/sandboxes/" + id + "/shm/x": true,
		"/srv/sandboxes/" + strings.ToUpper(id) + "/shm":                               true,
		"/srv/sandboxes/" + id + "0/shm":                                               true,
		"/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/shm":                  true,
		"/var/lib/kubelet/pods/u/volumes/kubernetes.io~local-volume/pv/directory/here": true,
		"/var/lib/kubelet/plugins/kubernetes.io/csi/d/" + id + "/shm":                  true,
	} {
		spec := baseSpec()
		spec.Mounts = []specs.Mount{{Destination: "/dev/shm", Type: "bind", Source: source, Options: []string{"rbind"}}}
		guest, err := ForGuest(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := guest.Mounts[0].Type == "bind"; got != volume {
			t.Errorf("%s: %+v", source, guest.Mounts[0])
		}
	}
}

func TestForGuestRefusesValues(t *testing.T) {
	yes, no := true, false
	for name, change := range map[string]func(*specs.Spec){
		"relative source": func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/data", Type: "bind", Source: "srv"}} },
		"propagation": func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/data", Type: "bind", Source: "/srv", Options: []string{"rbind", "rshared"}}}
		},
		"relative":    func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "data", Type: "tmpfs"}} },
		"file system": func(s *specs.Spec) { s.Mounts = []specs.Mount{{Destination: "/data", Type: "nfs", Source: "a:/b"}} },
		"apparmor":    func(s *specs.Spec) { s.Process.ApparmorProfile = "mine" },
		"joined pid": func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "pid", Path: "/proc/1/ns/pid"}}
		},
		"user namespace": func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "user"}} },
		"time namespace": func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "time"}} },
		"terminal": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/ttyS0", Type: "c", Major: 4, Minor: 64}}
		},
		"disguised terminal": func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 4, Minor: 64}}
		},
		"huge pages": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1}}}
		},
		"oom killer": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: &yes}}
		},
		"hierarchy": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{UseHierarchy: &no}}
		},
		"no process": func(s *specs.Spec) { s.Process = nil },
	} {
		t.Run(name, func(t *testing.T) {
			spec := baseSpec()
			change(spec)
			if _, err := ForGuest(spec); !errdefs.IsNotImplemented(err) && !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestBlockDevicesAreLeftOut: they are disks in a guest, under numbers that only who attaches them knows.
func TestBlockDevicesAreLeftOut(t *testing.T) {
	spec := baseSpec()
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}}
	guest, err := ForGuest(spec)
	if err != nil || len(guest.Linux.Devices) != 0 {
		t.Errorf("%v, %v", guest, err)
	}
}

func FuzzForGuest(f *testing.F) {
	f.Add([]byte(`{"process":{"args":["x"]},"root":{},"linux":{}}`))
	f.Add([]byte(`{"process":{},"root":{},"linux":{"resources":{"memory":{"limit":1}},"devices":[{}]},"mounts":[{"destination":"/x"}],"hooks":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var spec specs.Spec
		if json.Unmarshal(data, &spec) != nil {
			t.Skip()
		}
		guest, err := ForGuest(&spec)
		if err != nil {
			return
		}
		again, err := ForGuest(guest)
		if err != nil || !reflect.DeepEqual(guest, again) {
			t.Errorf("a guest's spec is not a fixed point: %v\n%v\n%v", err, guest, again)
		}
	})
}
