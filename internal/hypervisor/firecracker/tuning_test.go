package firecracker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm/vmmtest"
)

// TestRates: a rate of disks is in force, for bytes and for operations. Firecracker counts how often it made the guest wait.
func TestRates(t *testing.T) {
	const size = 4 << 20
	guest := vmmtest.RealGuest(t, Driver{}, minMemory)
	image, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	if err := image.Truncate(size); err != nil {
		t.Fatal(err)
	}
	read := func(rate hypervisor.Rate) (throttled uint64, milliseconds int) {
		cfg := guest
		cfg.DiskRate = rate
		cfg.Disks = []hypervisor.Disk{{ID: "read", File: image, ReadOnly: true}}
		v, stop := hypervisortest.Start(t, Driver{}, cfg)
		defer stop()
		at := "serial:" + addressOf(t, image).Serial
		hypervisortest.Ask(t, v, "disk %s", at) // it is there
		before := hypervisortest.ReadCounters(t, v)
		var bytes int
		if _, err := fmt.Sscan(hypervisortest.Ask(t, v, "readall %s", at), &bytes, &milliseconds); err != nil || bytes != size {
			t.Fatalf("the guest has read %d bytes: %v", bytes, err)
		}
		after := hypervisortest.ReadCounters(t, v)
		moved := hypervisor.CounterName{Kind: hypervisor.Bytes, Part: hypervisor.PartDisk, Direction: hypervisor.In}
		if n := after[moved] - before[moved]; n < size/2 || n > 2*size {
			t.Errorf("Firecracker counts %d bytes, the guest has read %d", n, bytes)
		}
		waited := hypervisor.CounterName{Kind: hypervisor.Throttled, Part: hypervisor.PartDisk}
		return after[waited] - before[waited], milliseconds
	}
	throttled, free := read(hypervisor.Rate{})
	if throttled != 0 {
		t.Errorf("without a rate the guest had to wait %d times", throttled)
	}
	for what, rate := range map[string]hypervisor.Rate{"bytes": {Bytes: size / 8}, "operations": {Ops: 8}} {
		throttled, bound := read(rate)
		if throttled == 0 {
			t.Errorf("with a rate of %s the guest never had to wait", what)
		}
		t.Logf("%d bytes took %d ms with a rate of %s, and %d ms without; the guest had to wait %d times", size, bound, what, free, throttled)
	}
}

// bit is one of what CPUID says, with the name that the kernel has for it.
type bit struct {
	flag, leaf, register string
	n                    int
}

// template hides a bit.
func (b bit) template() []byte {
	return fmt.Appendf(nil, `{"cpuid_modifiers": [{"leaf": %q, "subleaf": "0x0", "flags": %d, "modifiers": [{"register": %q, "bitmap": "0b0%s"}]}]}`,
		b.leaf, map[string]int{"0x1": 0, "0x7": 1}[b.leaf], b.register, strings.Repeat("x", b.n))
}

// TestCPUTemplate: what a template hides the guest has not, and one that Firecracker cannot apply it refuses.
func TestCPUTemplate(t *testing.T) {
	cfg := vmmtest.RealGuest(t, Driver{}, minMemory)
	flags := func(cfg hypervisor.Config) []string {
		v, stop := hypervisortest.Start(t, Driver{}, cfg)
		defer stop()
		return strings.Fields(hypervisortest.Ask(t, v, "cpuflags"))
	}
	all := flags(cfg)
	bits := slices.DeleteFunc([]bit{{"bmi2", "0x7", "ebx", 8}, {"adx", "0x7", "ebx", 19}, {"movbe", "0x1", "ecx", 22}, {"rdrand", "0x1", "ecx", 30}}, func(b bit) bool {
		return !slices.Contains(all, b.flag)
	})
	if len(bits) == 0 {
		t.Fatalf("the guest has none of the flags of this test: %q", all)
	}
	cfg.CPUTemplate = bits[0].template()
	masked := flags(cfg)
	if slices.Contains(masked, bits[0].flag) {
		t.Errorf("the guest has %s in spite of the template", bits[0].flag)
	}
	if len(masked) < len(all)-5 {
		t.Errorf("with %s hidden the guest has %q, of %q", bits[0].flag, masked, all)
	}
	for what, template := range map[string]string{
		"another language": `{"cpus": "fast"}`,
		"no such leaf":     string(bit{"", "0x3fff", "eax", 1}.template()),
	} {
		cfg := cfg
		cfg.CPUTemplate = []byte(template)
		dir := t.TempDir()
		if err := os.Chown(dir, int(cfg.User.UID), int(cfg.User.GID)); err != nil {
			t.Fatal(err)
		}
		cfg.RunDir = dir
		v, err := Driver{}.Start(t.Context(), cfg)
		if err == nil {
			v.Kill()
			<-v.Done()
		}
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(strings.ToLower(fmt.Sprint(err)), "template") {
			t.Errorf("%s: %v, want FailedPrecondition that speaks of the template", what, err)
		}
		t.Log(err)
	}
}
