package oci

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files")

func baseInput() Input {
	return Input{
		ID: "c1", Name: "web", ImageName: "docker.io/library/web:1",
		Image:   ocispec.ImageConfig{Entrypoint: []string{"/bin/web"}, Cmd: []string{"--serve"}, Env: []string{"A=1", "PATH=/bin"}, WorkingDir: "/srv"},
		Sandbox: Sandbox{ID: "s1", Name: "pod", Namespace: "default", UID: "u1", Hostname: "pod", CgroupParent: "/kubepods/pod1"},
	}
}

func TestGenerateGolden(t *testing.T) {
	limit, shares := int64(64<<20), uint64(512)
	for name, change := range map[string]func(*Input){
		"plain": func(*Input) {},
		"full": func(in *Input) {
			in.Command, in.Args = []string{"/bin/sh"}, []string{"-c", "exit 0"}
			in.Env = []string{"A=2", "B="}
			in.WorkDir, in.Terminal, in.OOMScoreAdj = "/tmp", true, 999
			in.Mounts = []specs.Mount{{Destination: "/data/sub", Type: "bind", Source: "/srv/sub", Options: []string{"rbind", "rslave"}}, {Destination: "/data", Type: "bind", Source: "/srv/data", Options: []string{"rbind", "ro"}}, {Destination: "/sys/", Type: "bind", Source: "/sys"}}
			in.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}}
			in.Sandbox.Shm = "/run/pod/shm"
			in.Sandbox.Namespaces = map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "/run/netns/x", specs.PIDNamespace: ""}
			in.Security = Security{
				NoNewPrivs: true, ReadonlyRoot: true, AddCaps: []string{"net_admin"}, DropCaps: []string{"CAP_MKNOD"}, AmbientCaps: []string{"NET_BIND_SERVICE"},
				Seccomp:         func(*specs.Spec) *specs.LinuxSeccomp { return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno} },
				AppArmorProfile: "mine", MaskedPaths: []string{}, ReadonlyPaths: []string{"/proc/sys"},
			}
		},
		"privileged": func(in *Input) {
			in.Security = Security{Privileged: true, MaskedPaths: []string{"/proc/x"}, Seccomp: func(*specs.Spec) *specs.LinuxSeccomp { t.Error("asked for a profile"); return nil }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := baseInput()
			change(&in)
			spec, err := Generate(in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(spec, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(got)+"\n" != string(want) {
				t.Errorf("differs from %s (go test -update writes it anew):\n%s", golden, got)
			}
		})
	}
}

func TestProcessArgs(t *testing.T) {
	for _, c := range []struct{ entrypoint, cmd, command, args, want string }{
		{"e", "c", "", "", "e c"},
		{"e", "c", "", "a", "e a"},
		{"e", "c", "x", "", "x"},
		{"e", "c", "x", "a", "x a"},
		{"", "c", "", "", "c"},
		{"", "c", "", "a", "a"},
		{"", "", "", "", ""},
	} {
		got, err := processArgs(strings.Fields(c.command), strings.Fields(c.args), ocispec.ImageConfig{Entrypoint: strings.Fields(c.entrypoint), Cmd: strings.Fields(c.cmd)})
		if c.want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err != nil || !slices.Equal(got, strings.Fields(c.want)) {
			t.Errorf("%+v: got %v, %v", c, got, err)
		}
	}
	if got, err := processArgs(nil, nil, ocispec.ImageConfig{Entrypoint: []string{""}, Cmd: []string{"c"}}); err != nil || !slices.Equal(got, []string{"c"}) {
		t.Errorf("taken back entrypoint: %v, %v", got, err)
	}
}

func TestCapabilities(t *testing.T) {
	all := len(knownCaps())
	for _, c := range []struct {
		name string
		s    Security
		n    int
		has  string
		not  string
	}{
		{"default", Security{}, 14, "CAP_CHOWN", "CAP_SYS_ADMIN"},
		{"add all", Security{AddCaps: []string{"ALL"}}, all, "CAP_SYS_ADMIN", ""},
		{"add all drop one", Security{AddCaps: []string{"all"}, DropCaps: []string{"SYS_ADMIN"}}, all - 1, "CAP_CHOWN", "CAP_SYS_ADMIN"},
		{"drop all", Security{DropCaps: []string{"ALL"}}, 0, "", "CAP_CHOWN"},
		{"drop all add one", Security{DropCaps: []string{"ALL"}, AddCaps: []string{"net_raw"}}, 1, "CAP_NET_RAW", "CAP_CHOWN"},
		{"drop one", Security{DropCaps: []string{"CAP_CHOWN"}}, 13, "CAP_KILL", "CAP_CHOWN"},
		{"privileged", Security{Privileged: true, DropCaps: []string{"ALL"}}, all, "CAP_SYS_ADMIN", ""},
	} {
		caps, err := capabilities(c.s)
		if err != nil {
			t.Fatal(err)
		}
		if len(caps.Bounding) != c.n || c.has != "" && !slices.Contains(caps.Effective, c.has) || c.not != "" && slices.Contains(caps.Permitted, c.not) || len(caps.Inheritable) != 0 {
			t.Errorf("%s: %v", c.name, caps)
		}
	}
	for _, s := range []Security{{AddCaps: []string{"FLY"}}, {DropCaps: []string{""}}, {AmbientCaps: []string{"ALL"}}} {
		if _, err := capabilities(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestGenerateRefuses(t *testing.T) {
	for name, change := range map[string]func(*Input){
		"env without =":  func(in *Input) { in.Env = []string{"A"} },
		"env zero":       func(in *Input) { in.Env = []string{"A=\x00"} },
		"arg zero":       func(in *Input) { in.Args = []string{"\x00"} },
		"relative mount": func(in *Input) { in.Mounts = []specs.Mount{{Destination: "x"}} },
		"root mount":     func(in *Input) { in.Mounts = []specs.Mount{{Destination: "/x/.."}} },
	} {
		in := baseInput()
		change(&in)
		if _, err := Generate(in); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadSeccomp(t *testing.T) {
	dir := t.TempDir()
	write := func(content string) string {
		path := filepath.Join(dir, "profile.json")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	p, err := ReadSeccomp(write(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`))
	if err != nil || p.DefaultAction != specs.ActAllow || len(p.Syscalls) != 1 {
		t.Errorf("got %v, %v", p, err)
	}
	for _, bad := range []string{"", "[]", `{}`, `{"defaultAction":"NO"}`, `{"defaultAction":"SCMP_ACT_ALLOW"}x`, `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{}]}`, strings.Repeat(" ", MaxSeccompProfile+1)} {
		if _, err := ReadSeccomp(write(bad)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%.40q: %v", bad, err)
		}
	}
	if _, err := ReadSeccomp(filepath.Join(dir, "none")); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := ReadSeccomp(dir); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := ReadSeccomp("relative"); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func FuzzParseSeccomp(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`))
	f.Add([]byte(`{"defaultAction":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := parseSeccomp(data); (p == nil) == (err == nil) {
			t.Errorf("got %v, %v", p, err)
		}
	})
}
