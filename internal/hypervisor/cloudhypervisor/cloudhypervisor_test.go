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

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm/vmmtest"
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

func TestRefusals(t *testing.T) { vmmtest.Refusals(t, check, maxVCPUs) }

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

// TestContract boots real guests.
func TestContract(t *testing.T) {
	hypervisortest.Run(t, Driver{}, hypervisortest.Options{
		Config: vmmtest.RealGuest(t, Driver{}, minMemory), Work: 3 * time.Second,
		Address: func(_ int, d hypervisor.Disk) hypervisor.DiskAddress {
			return hypervisor.DiskAddress{Kind: hypervisor.BlkSerial, Serial: serial(d.ID)}
		},
	})
}
