package internal_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/pistis-run/pistis/"

type pkg struct {
	ImportPath   string
	Name         string
	Doc          string
	Deps         []string
	Imports      []string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
}

// listPackages are the packages of this module.
func listPackages(t *testing.T) []pkg {
	t.Helper()
	pkgs, err := listed()
	if err != nil {
		t.Fatal(err)
	}
	return pkgs
}

// listed asks the go command for the packages of this module and what they import, once for all tests.
var listed = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Doc,Deps,Imports,GoFiles,TestGoFiles,XTestGoFiles", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("go list: %s", exit.Stderr)
		}
		return nil, err
	}
	var pkgs []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
})

func matches(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if prefix, ok := strings.CutSuffix(p, "/..."); ok {
			return name == prefix || strings.HasPrefix(name, prefix+"/")
		}
		return name == p
	})
}

// TestForbiddenDependencies holds the import rules of docs/architecture.md. "deps" is the transitive
// closure, "imports" what the package's own files name.
func TestForbiddenDependencies(t *testing.T) {
	rules := []struct {
		why        string
		packages   []string // whose rule it is; without the module's prefix
		except     []string
		transitive bool
		forbidden  []string
	}{
		{
			why:       "the hypervisor seam knows nothing of ours but the transport",
			packages:  []string{"internal/hypervisor/..."},
			except:    []string{"internal/hypervisor/hypervisortest/..."},
			forbidden: []string{module + "internal/sandbox/...", module + "internal/container/...", module + "internal/network/...", module + "internal/agent/...", module + "internal/cri/...", module + "api/...", "k8s.io/..."},
		},
		{
			why:        "the guest side stays small",
			packages:   []string{"internal/agent/...", "cmd/pistis-agent"},
			transitive: true,
			forbidden:  []string{"google.golang.org/grpc", "k8s.io/...", "github.com/containerd/containerd/v2/core/...", "net/http", "github.com/godbus/..."},
		},
		{
			why:        "the shim stays small",
			packages:   []string{"internal/shim/...", "internal/vm", "cmd/containerd-shim-pistis-v2"},
			transitive: true,
			forbidden:  []string{"google.golang.org/grpc", "k8s.io/...", "github.com/containerd/containerd/v2/core/metadata", module + "internal/sandbox", module + "internal/container", "github.com/godbus/..."},
		},
		{
			why:        "a node runs a monitor per pod: it stays small",
			packages:   []string{"internal/monitor/...", "cmd/pistis-monitor"},
			transitive: true,
			forbidden:  []string{"google.golang.org/protobuf/...", "google.golang.org/grpc/...", "github.com/containerd/ttrpc", "github.com/containerd/containerd/...", "net/http", "k8s.io/...", "github.com/godbus/..."},
		},
		{
			why:       "the CRI API is the business of the CRI server and of its clients",
			packages:  []string{"internal/...", "cmd/..."},
			except:    []string{"internal/cri/...", "internal/cli/..."},
			forbidden: []string{"k8s.io/cri-api/..."},
		},
		{
			why:       "sandbox and container see mechanisms only as interfaces that are injected",
			packages:  []string{"internal/sandbox", "internal/container"},
			forbidden: []string{module + "internal/shimclient", module + "internal/hypervisor/...", module + "internal/vm/...", module + "internal/vmpod", module + "internal/monitor/...", module + "internal/cri/..."},
		},
		{
			why:       "vocabulary and leaves import nothing of ours",
			packages:  []string{"internal/task", "internal/lifecycle", "internal/store", "internal/cleanup", "internal/filelock", "internal/logfields", "internal/rtnl", "internal/systemd", "api/..."},
			forbidden: []string{module + "internal/..."},
		},
	}
	pkgs := listPackages(t)
	for _, rule := range rules {
		for _, p := range pkgs {
			name := strings.TrimPrefix(p.ImportPath, module)
			if !matches(name, rule.packages) || matches(name, rule.except) {
				continue
			}
			deps := p.Imports
			if rule.transitive {
				deps = p.Deps
			}
			for _, dep := range deps {
				if matches(dep, rule.forbidden) {
					t.Errorf("%s imports %s: %s", name, dep, rule.why)
				}
			}
		}
	}
}

// layers are the storeys of the house, the lowest first; docs/architecture.md tells what is in the rooms. A package
// imports what is in its own layer or below. A new package gets its place here.
func layers() [][]string {
	return [][]string{
		{ // contracts, vocabulary and leaves
			"api/...", "internal/cleanup", "internal/config", "internal/debian", "internal/event", "internal/failpoint", "internal/filelock",
			"internal/hostmount", "internal/hypervisor", "internal/lifecycle", "internal/logfields", "internal/oci", "internal/reaper",
			"internal/rtnl", "internal/span", "internal/steps/...", "internal/stats", "internal/stdio", "internal/store", "internal/task", "internal/transport", "internal/version",
		},
		{ // mechanisms: each does one thing, and knows no pods
			"internal/agent/...", "internal/agentclient", "internal/bundle",
			"internal/cgroup", "internal/guestimage", "internal/hypervisor/cloudhypervisor", "internal/hypervisor/drivers", "internal/hypervisor/kvmprobe",
			"internal/hypervisor/firecracker", "internal/hypervisor/qemu/...", "internal/hypervisor/vmm", "internal/image/...", "internal/network/...",
			"internal/rootfs", "internal/runc", "internal/share/...", "internal/shim/limits", "internal/signature", "internal/snapshot",
			"internal/systemd", "internal/telemetry", "internal/userdb",
		},
		{ // one pod, and how the daemon reaches it
			"internal/monitor", "internal/shim/volumes", "internal/shimclient", "internal/taskshim", "internal/vm",
		},
		{ // all pods
			"internal/container", "internal/hostpod", "internal/nri", "internal/podfiles", "internal/sandbox", "internal/vmpod",
		},
		{ // what answers calls, each in a process of its own
			"internal/agent", "internal/agent/boot", "internal/cri/...", "internal/doctor", "internal/monitor/server",
			"internal/shim", "internal/shim/bootstrap",
		},
		{ // wiring
			"internal/cli", "internal/daemon",
		},
		{"cmd/..."},
		{ // for tests
			"internal", "internal/hypervisor/hypervisortest/...", "internal/hypervisor/vmm/vmmtest", "internal/network/tap/taptest", "internal/vm/vmtest", "test/...",
		},
	}
}

func TestLayers(t *testing.T) {
	at := func(name string) int {
		// From above, as the patterns of some layers hold packages for tests too.
		for i, layer := range slices.Backward(layers()) {
			if matches(name, layer) {
				return i
			}
		}
		return -1
	}
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		layer := at(name)
		if layer < 0 {
			t.Errorf("%s is in no layer: give it its place in this test, and in docs/architecture.md", name)
		}
		for _, dep := range p.Imports {
			if dep, ours := strings.CutPrefix(dep, module); ours && at(dep) > layer {
				t.Errorf("%s imports %s, which is above it", name, dep)
			}
		}
	}
}

// TestPackages holds what every package owes its reader: a name that says something, and a doc comment.
func TestPackages(t *testing.T) {
	vague := []string{"util", "utils", "common", "types", "helpers", "base", "manager"}
	for _, p := range listPackages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		if slices.Contains(vague, path.Base(name)) {
			t.Errorf("%s: a package named %s says nothing of what is in it", name, path.Base(name))
		}
		if len(p.GoFiles) == 0 {
			continue
		}
		if p.Doc == "" {
			t.Errorf("%s: no package comment", name)
		}
		if strings.HasPrefix(name, "internal/") && !slices.Contains(p.GoFiles, "doc.go") && len(p.GoFiles) > 1 {
			t.Errorf("%s: several files and no doc.go", name)
		}
	}
}
