package firecracker

import (
	"encoding/json"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
	"github.com/pistis-run/pistis/internal/hypervisor/vmm/vmmtest"
)

var update = flag.Bool("update", false, "write the golden files")

// TestDescription: what is said to Firecracker.
func TestDescription(t *testing.T) {
	cfg := hypervisor.Config{
		ID: "pod-1", Accel: hypervisor.KVM, Size: hypervisor.Size{VCPUs: 2, Memory: 256 << 20, MaxMemory: 1000 << 20}, Initrd: "/i", Params: []string{"audit=0"},
		Tuning: hypervisor.Tuning{DiskRate: hypervisor.Rate{Bytes: 1 << 20}, NetRate: hypervisor.Rate{Bytes: 1 << 20, Ops: 100}, CPUTemplate: []byte(`{"msr_modifiers":[]}`), Reclaim: true},
		NICs:   []hypervisor.NIC{{ID: "nic-0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1450}},
	}
	var got strings.Builder
	got.WriteString(strings.Join(arguments(cfg, abilitiesOf("1.16.1"), true), " ") + "\n")
	for _, r := range append(description(cfg, abilitiesOf("1.16.1"), []string{"pistap2"}), driveRequest(hypervisor.Disk{ID: "layer-1", ReadOnly: true}, "drive3", cfg.DiskRate), imageRequest("drive3", emptyPath)) {
		body, err := json.Marshal(r.body)
		if err != nil {
			t.Fatal(err)
		}
		got.WriteString("PUT " + r.path + " " + string(body) + "\n")
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

func TestSerial(t *testing.T) {
	if got := serial(unix.Stat_t{Dev: 12345, Rdev: 0, Ino: 12345678901234567}); got != "12345012345678901234" {
		t.Errorf("serial %q", got)
	}
}

// TestContract boots real guests.
func TestContract(t *testing.T) { contract(t, Driver{}) }

// TestContractWithoutPlugging is TestContract as with a Firecracker that cannot plug disks.
func TestContractWithoutPlugging(t *testing.T) { contract(t, Driver{mmio: true}) }

func contract(t *testing.T, driver Driver) {
	config := vmmtest.RealGuest(t, Driver{}, minMemory)
	version, err := driver.Version(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	fixed := ""
	if !abilitiesOf(version).memory {
		fixed = "1.14 or later"
	}
	hypervisortest.Run(t, driver, hypervisortest.Options{
		Config: config, FixedMemory: fixed, Work: 3 * time.Second,
		Address: func(_ int, d hypervisor.Disk) hypervisor.DiskAddress { return addressOf(t, d.File) },
	})
}

// addressOf is where a guest finds the disk of an image.
func addressOf(t *testing.T, image *os.File) hypervisor.DiskAddress {
	t.Helper()
	info, err := image.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return hypervisor.DiskAddress{Kind: hypervisor.BlkSerial, Serial: serial(unix.Stat_t{Dev: stat.Dev, Rdev: stat.Rdev, Ino: stat.Ino})}
}
