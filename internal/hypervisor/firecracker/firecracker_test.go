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

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/guestimage"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
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
	for _, r := range append(description(cfg, []string{"pistap2"}), driveRequest(hypervisor.Disk{ID: "layer-1", ReadOnly: true}, "drive3", cfg.DiskRate), imageRequest("drive3", emptyPath)) {
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

func TestRefusals(t *testing.T) {
	good := hypervisor.Config{ID: "x", Accel: hypervisor.KVM, Kernel: "/k", Size: hypervisor.Size{VCPUs: 1, Memory: minMemory}, RunDir: "/r"}
	if err := check(good); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*hypervisor.Config){
		"emulation":    func(c *hypervisor.Config) { c.Accel = hypervisor.TCG },
		"processors":   func(c *hypervisor.Config) { c.VCPUs = 33 },
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

func TestSerial(t *testing.T) {
	if got := serial(unix.Stat_t{Dev: 12345, Rdev: 0, Ino: 12345678901234567}); got != "12345012345678901234" {
		t.Errorf("serial %q", got)
	}
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
	vmlinux, err := os.Create(filepath.Join(t.TempDir(), "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	defer vmlinux.Close()
	if err := guestimage.WriteVmlinux(vmlinux, guest.Kernel); err != nil {
		t.Fatal(err)
	}
	return hypervisor.Config{
		ID: "test", Accel: hypervisor.KVM, Kernel: vmlinux.Name(), Initrd: guest.Initrd, Size: hypervisor.Size{VCPUs: 1, Memory: minMemory},
		User: &hypervisor.User{UID: 2_000_001, GID: 2_000_001},
	}
}

// TestContract boots real guests.
func TestContract(t *testing.T) { contract(t, Driver{}) }

// TestContractWithoutPlugging is TestContract as with a Firecracker that cannot plug disks.
func TestContractWithoutPlugging(t *testing.T) { contract(t, Driver{mmio: true}) }

func contract(t *testing.T, driver Driver) {
	config := realGuest(t)
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
