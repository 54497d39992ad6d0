package cloudhypervisor

import (
	"encoding/json"
	"flag"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
)

var update = flag.Bool("update", false, "write the golden files")

// TestDescription: what is said to Cloud Hypervisor.
func TestDescription(t *testing.T) {
	cfg := hypervisor.Config{
		ID: "pod-1", Accel: hypervisor.KVM, Size: hypervisor.Size{VCPUs: 2, MaxVCPUs: 4, Memory: 256 << 20, MaxMemory: 1000 << 20}, Tuning: hypervisor.Tuning{Reclaim: true}, Initrd: "/i", Params: []string{"audit=0"},
	}
	var got strings.Builder
	for _, body := range []any{
		description(cfg, true),
		nicRequest(hypervisor.NIC{ID: "nic0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1450}),
		diskRequest(hypervisor.Disk{ID: "layer-1", ReadOnly: true}),
		diskRequest(hypervisor.Disk{ID: "a-name-that-is-longer-than-serials"}),
	} {
		text, err := json.MarshalIndent(body, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		got.Write(append(text, '\n'))
	}
	file := filepath.Join("testdata", "description.golden")
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("description:\n%s\nwant (go test -update writes it):\n%s", got.String(), want)
	}
}

func TestRefusals(t *testing.T) {
	good := hypervisor.Config{ID: "x", Accel: hypervisor.KVM, Kernel: "/k", Size: hypervisor.Size{VCPUs: 1, Memory: minMemory}, RunDir: "/r"}
	if err := check(good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*hypervisor.Config){
		"emulation":    func(c *hypervisor.Config) { c.Accel = hypervisor.TCG },
		"processors":   func(c *hypervisor.Config) { c.VCPUs = maxVCPUs + 1 },
		"directory":    func(c *hypervisor.Config) { c.RunDir = "" },
		"machine type": func(c *hypervisor.Config) { c.Machine = "q35" },
		"disks":        func(c *hypervisor.Config) { c.Disks = make([]hypervisor.Disk, 29) },
	} {
		c := good
		change(&c)
		if err := check(c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

const someEvents = `{
  "timestamp": {
    "secs": 0,
    "nanos": 1
  },
  "source": "vm",
  "event": "booted",
  "properties": null
}

nonsense

{"source": "vm", "event": "device-removed", "properties": {"id": "layer1", "bdf": "0000:00:05.0"}}`

func TestEvents(t *testing.T) {
	var seen []string
	readEvents(strings.NewReader(someEvents), func(e event) { seen = append(seen, e.Event+" "+e.Properties["id"]) })
	if want := []string{"booted ", "device-removed layer1"}; !slices.Equal(seen, want) {
		t.Errorf("events %q, want %q", seen, want)
	}
}

func FuzzEvents(f *testing.F) {
	f.Add([]byte(someEvents))
	f.Add([]byte("\n\n\n\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		readEvents(strings.NewReader(string(data)), func(event) {})
	})
}

// realGuest is a VM that boots testinit, or skips the test.
func realGuest(t *testing.T) hypervisor.Config {
	t.Helper()
	switch {
	case testing.Short():
		t.Skip("SKIPPED, no real guest: short tests were asked for")
	case os.Getuid() != 0:
		t.Skip("SKIPPED, no real guest: it needs root")
	case hypervisortest.Acceleration() != hypervisor.KVM:
		t.Skip("SKIPPED, no real guest: it needs a host whose KVM works, and PISTIS_ACCELERATION=kvm")
	}
	if _, err := (Driver{}).Version(t.Context(), ""); err != nil {
		t.Skipf("SKIPPED, no real guest: %v", err)
	}
	guest := hypervisortest.BuildGuest(t)
	return hypervisor.Config{
		ID: "test", Accel: hypervisor.KVM, Kernel: guest.Kernel, Initrd: guest.Initrd, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory},
		User: &hypervisor.User{UID: 2_000_001, GID: 2_000_001},
	}
}

// TestContract boots real guests.
func TestContract(t *testing.T) {
	hypervisortest.Run(t, Driver{}, hypervisortest.Options{
		Config: realGuest(t), Work: 3 * time.Second,
		Address: func(_ int, d hypervisor.Disk) hypervisor.DiskAddress {
			return hypervisor.DiskAddress{Kind: hypervisor.BlkSerial, Serial: serial(d.ID)}
		},
	})
}
