package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestDefaultIsValid(t *testing.T) {
	cfg := Default()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	parsed, err := Parse(DefaultFile())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(parsed, cfg) {
		t.Errorf("the default file parses to\n%+v\nnot to\n%+v", parsed, cfg)
	}
	empty, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(empty, cfg) {
		t.Errorf("an empty file is\n%+v\nnot the default\n%+v", empty, cfg)
	}
}

// TestDefaultFileExplainsEveryKey walks the struct, so that a key cannot be added without being documented.
func TestDefaultFileExplainsEveryKey(t *testing.T) {
	lines := strings.Split(string(DefaultFile()), "\n")
	var walk func(rt reflect.Type, table string)
	walk = func(rt reflect.Type, table string) {
		for i := range rt.NumField() {
			field := rt.Field(i)
			if field.Anonymous { // its keys are the outer one's
				walk(field.Type, table)
				continue
			}
			key := field.Tag.Get("toml")
			if key == "" || key != field.Tag.Get("json") {
				t.Errorf("%s.%s: toml and json tags differ or are missing", rt.Name(), field.Name)
			}
			sub := strings.TrimPrefix(table+"."+key, ".")
			switch {
			case field.Type == reflect.TypeFor[Duration]():
				assertExplained(t, lines, table, key)
			case field.Type.Kind() == reflect.Struct:
				walk(field.Type, sub)
			case field.Type == reflect.TypeFor[map[string]Handler]():
				walk(reflect.TypeFor[Handler](), sub+".runsc")
			case field.Type.Kind() == reflect.Map:
				if !strings.Contains(string(DefaultFile()), "["+sub+"]") {
					t.Errorf("no table [%s]", sub)
				}
			default:
				assertExplained(t, lines, table, key)
			}
		}
	}
	walk(reflect.TypeFor[Config](), "")
}

func assertExplained(t *testing.T, lines []string, table, key string) {
	t.Helper()
	current := ""
	header := regexp.MustCompile(`^\[(.*)\]$`)
	for i, line := range lines {
		if m := header.FindStringSubmatch(line); m != nil {
			current = m[1]
		}
		if current == table && strings.HasPrefix(line, key+" = ") {
			if i == 0 || !strings.HasPrefix(lines[i-1], "#") {
				t.Errorf("key %s of table [%s] has no comment", key, table)
			}
			return
		}
	}
	t.Errorf("key %s of table [%s] is not in the default file", key, table)
}

func TestParse(t *testing.T) {
	cfg, err := Parse([]byte(`
root = "/srv/pistis"
drain_timeout = "1m30s"
default_handler = "mine"
untrusted_handler = ""
[image]
pinned = ["registry.example/pause:1"]
[image.mirrors]
"docker.io" = ["http://127.0.0.1:5000"]
[handlers.mine]
type = "vm"
`))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Root != "/srv/pistis" || cfg.DrainTimeout.Duration != 90*time.Second || cfg.State != "/run/pistis" {
		t.Errorf("got %+v", cfg)
	}
	if len(cfg.Handlers) != 1 || cfg.Image.Mirrors["docker.io"][0] != "http://127.0.0.1:5000" {
		t.Errorf("handlers %v, mirrors %v", cfg.Handlers, cfg.Image.Mirrors)
	}
}

func TestParseRefuses(t *testing.T) {
	tests := []struct{ name, file, want string }{
		{"unknown key", "root = \"/x\"\n\n[vm]\nmemroy = 3\n", `line 4: unknown key "vm.memroy"`},
		{"unknown table", "[vmm]\nx = 1\n", `unknown key "vmm`},
		{"syntax", "root = \n", "line 1"},
		{"template", "[firecracker]\ncpu_template = \"t.json\"\n", "not an absolute path"},
		{"wrong type", "[vm]\nvcpus = \"two\"\n", "line 2"},
		{"bad duration", "drain_timeout = \"soon\"\n", "line 1"},
		{"zero duration", "drain_timeout = \"0s\"\n", "drain_timeout"},
		{"relative root", "root = \"var\"\n", "root: \"var\" is not a clean absolute path"},
		{"unclean root", "root = \"/var/../x\"\n", "root"},
		{"long socket", "socket = \"/" + strings.Repeat("x", 120) + "\"\n", "Unix socket"},
		{"long state", "state = \"/" + strings.Repeat("x", 40) + "\"\n", "state"},
		{"default handler", "default_handler = \"kata\"\n", "there is no [handlers.kata]"},
		{"untrusted handler", "untrusted_handler = \"kata\"\n", "there is no [handlers.kata]"},
		{"oci handler with a hypervisor", "default_handler = \"vm\"\n[handlers.vm]\ntype = \"vm\"\n[handlers.runc]\ntype = \"oci\"\nhypervisor = \"qemu\"\n", "handlers.runc.hypervisor"},
		{"untrusted on the host's kernel", "untrusted_handler = \"runc\"\n", "untrusted pods need one of type"},
		{"shim without a name", "default_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"shim\"\n", "handlers.s.shim: empty"},
		{"shim of one word", "default_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"shim\"\nshim = \"runsc\"\n", "neither the name of a containerd shim"},
		{"our own shim", "default_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"shim\"\nshim = \"run.pistis.v2\"\n", "make the type \"vm\""},
		{"shim with a path", "default_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"shim\"\nshim = \"io.containerd.runc.v2\"\npath = \"/bin/x\"\n", "shim says what runs them"},
		{"unknown option of runc's shim", "default_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"shim\"\nshim = \"io.containerd.runc.v2\"\n[handlers.s.options]\nBinary = \"x\"\n", "unknown key Binary"},
		{"cgroups of systemd without it", "cgroup_driver = \"cgroupfs\"\ndefault_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"shim\"\nshim = \"io.containerd.runc.v2\"\n[handlers.s.options]\nSystemdCgroup = true\n", "made without systemd"},
		{"shim's file", "default_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"shim\"\nshim = \"io.containerd.runsc.v1\"\n[handlers.s.options]\nConfigPath = \"x\"\n", "not an absolute path"},
		{"oci handler with a shim", "default_handler = \"s\"\nuntrusted_handler = \"\"\n[handlers.s]\ntype = \"oci\"\nshim = \"io.containerd.runc.v2\"\n", "are of handlers of type \"shim\""},
		{"handler type", "[handlers.vm]\ntype = \"wasm\"\n", "handlers.vm.type"},
		{"handler name", "[handlers.VM_1]\ntype = \"vm\"\n", "handlers.VM_1"},
		{"hypervisor", "default_handler = \"vm\"\n[handlers.vm]\ntype = \"vm\"\nhypervisor = \"xen\"\n", "handlers.vm.hypervisor"},
		{"cgroup parent", "cgroup_parent = \"/../x\"\n", "cgroup_parent"},
		{"kernel alone", "[vm]\nkernel = \"/k\"\n", "give both or none"},
		{"acceleration", "[vm]\nacceleration = \"hvf\"\n", "vm.acceleration"},
		{"memory", "[vm]\nmemory_mib = 8\n", "vm.memory_mib"},
		{"uids", "[vm]\nuids = \"10-5\"\n", "vm.uids"},
		{"bridge name", "[network.bridge]\nname = \"a-name-that-is-too-long\"\n", "network.bridge.name"},
		{"bridge ipv4", "[network.bridge]\nipv4 = \"10.88.0.1/16\"\n", "has host bits set"},
		{"bridge family", "[network.bridge]\nipv6 = \"10.88.0.0/16\"\n", "other IP version"},
		{"stream address", "[stream]\naddress = \"nowhere\"\n", "stream.address"},
		{"log level", "[log]\nlevel = \"loud\"\n", "log.level"},
		{"downloads", "[image]\nmax_concurrent_downloads = 0\n", "image.max_concurrent_downloads"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.file))
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an InvalidArgument with %q", err, tt.want)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	if _, err := Load(path); err == nil {
		t.Error("a missing file loads")
	}
	if err := os.WriteFile(path, []byte("rooot = \"/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v, want the file's name", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(DefaultFile())
	f.Add([]byte("default_handler = \"vm\"\n[handlers.vm]\ntype = \"vm\"\n"))
	f.Add([]byte("drain_timeout = \"-1ns\""))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := Parse(data)
		if err == nil && cfg.Validate() != nil {
			t.Error("Parse returned an invalid configuration")
		}
	})
}
