package nri

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/pistis-run/pistis/internal/container"
	"github.com/pistis-run/pistis/internal/sandbox"
)

// TestPartsThatAreMissing: no part of a spec has to be there.
func TestPartsThatAreMissing(t *testing.T) {
	for _, s := range []*specs.Spec{
		{}, {Process: &specs.Process{}, Linux: &specs.Linux{}, Hooks: &specs.Hooks{}},
		{Linux: &specs.Linux{Seccomp: &specs.LinuxSeccomp{}, Resources: &specs.LinuxResources{}}},
		{Linux: &specs.Linux{Resources: &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, Pids: &specs.LinuxPids{}}}},
	} {
		if c := toContainer(container.Status{ID: "c"}, s); c.Id != "c" {
			t.Errorf("%v", c)
		}
	}
	if pod := toPod(sandbox.Status{ID: "p", NetNS: "/n"}); pod.Id != "p" || pod.Linux.Namespaces[0].Path != "/n" {
		t.Errorf("%v", pod)
	}
}
