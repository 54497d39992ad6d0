package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
)

func lun(n uint32) *agentv1.DiskAddress {
	return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_ScsiLun{ScsiLun: n}}
}

func serial(s string) *agentv1.DiskAddress {
	return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_Serial{Serial: s}}
}

func device(s string) *agentv1.DiskAddress {
	return &agentv1.DiskAddress{Address: &agentv1.DiskAddress_Device{Device: s}}
}

func fakeSys(t *testing.T, files map[string]string) disks {
	t.Helper()
	d := disks{sys: t.TempDir(), dev: t.TempDir()}
	for name, text := range files {
		path := filepath.Join(d.sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestFindDisk(t *testing.T) {
	d := fakeSys(t, map[string]string{
		"class/scsi_host/host0/proc_name":           "ahci\n",
		"class/scsi_host/host2/proc_name":           "virtio_scsi\n",
		"class/scsi_host/host2/scan":                "",
		"bus/scsi/devices/0:0:0:1/block/sda/x":      "",
		"bus/scsi/devices/2:0:0:1/block/sdb/x":      "",
		"bus/scsi/devices/2:0:0:1/delete":           "",
		"bus/scsi/devices/2:0:0:16684/block/sdzz/x": "",
		"bus/scsi/devices/2:0:0:3/vendor":           "QEMU",
		"block/vda/serial":                          "layer-1",
		"block/vdb/serial":                          "layer-10\n",
		"block/vdc/size":                            "1",
		"bus/pci/rescan":                            "",
	})
	for _, tt := range []struct {
		addr *agentv1.DiskAddress
		want string
	}{
		{lun(1), "sdb"}, {lun(300), "sdzz"}, {lun(2), ""}, {lun(3), ""},
		{serial("layer-1"), "vda"}, {serial("layer-10"), "vdb"}, {serial("layer"), ""},
		{device("vdc"), "vdc"}, {device("vdd"), ""},
	} {
		if got := d.find(tt.addr); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.addr, got, tt.want)
		}
	}
	if err := d.remove(lun(1)); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(filepath.Join(d.sys, "bus/scsi/devices/2:0:0:1/delete")); string(text) != "1" {
		t.Errorf("the disk was not removed: %q", text)
	}
	d.rescan(lun(2))
	if text, _ := os.ReadFile(filepath.Join(d.sys, "class/scsi_host/host2/scan")); string(text) != "0 0 2" {
		t.Errorf("the bus was not scanned: %q", text)
	}
	d.rescan(serial("new"))
	if text, _ := os.ReadFile(filepath.Join(d.sys, "bus/pci/rescan")); string(text) != "1" {
		t.Errorf("the PCI bus was not scanned: %q", text)
	}
	for _, addr := range []*agentv1.DiskAddress{lun(99), serial("x"), device("x")} {
		if err := d.remove(addr); err != nil {
			t.Errorf("remove %v, which is not there: %v", addr, err)
		}
	}
}

// TestDiskOfAnotherSize: a device that has another size than the disk has the image of an earlier one.
func TestDiskOfAnotherSize(t *testing.T) {
	d := fakeSys(t, map[string]string{"block/vda/size": "8\n"})
	for bytes, want := range map[uint64]bool{0: true, 4096: true, 512: false, 8192: false} {
		if got := d.sized("vda", bytes); got != want {
			t.Errorf("8 sectors for %d bytes: %v", bytes, got)
		}
	}
	if d.sized("vdb", 512) {
		t.Error("a device that is not there has a size")
	}
}

func TestBadAddresses(t *testing.T) {
	for _, addr := range []*agentv1.DiskAddress{
		nil, {}, lun(flatLUN), serial(""), serial("123456789012345678901"), device(""), device("../sda"), device(".."), device("a\x00"),
	} {
		if _, err := diskKey(addr); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: got %v", addr, err)
		}
	}
}
