package hypervisortest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/hypervisor"
)

// plugs is how often a disk is plugged and unplugged: more often than a PCI bus has slots.
const plugs = 34

// where is how testinit names a disk.
func where(t *testing.T, a hypervisor.DiskAddress) string {
	t.Helper()
	switch a.Kind {
	case hypervisor.SCSILUN:
		return fmt.Sprint(a.LUN)
	case hypervisor.BlkSerial:
		return "serial:" + a.Serial
	}
	t.Fatalf("testinit does not find disks by kind %d", a.Kind)
	return ""
}

// wantDisk checks what the guest sees at an address.
func wantDisk(t *testing.T, v hypervisor.VM, a hypervisor.DiskAddress, mode, text string) {
	t.Helper()
	if got, want := Ask(t, v, "disk %s", where(t, a)), fmt.Sprintf("%s %d %s", mode, diskSize, text); got != want {
		t.Errorf("the guest sees disk %s as %q, want %q", where(t, a), got, want)
	}
}

// disks: those of the start, and many that come and go.
func (s *suite) disks(t *testing.T) {
	first, second := image(t, "first"), image(t, "second")
	defer first.Close()
	defer second.Close()
	c := s.config(t)
	c.Disks = []hypervisor.Disk{{ID: "first", File: first, ReadOnly: true}, {ID: "second", File: second}}
	v, stop := s.start(t, c)
	defer stop()
	at := []hypervisor.DiskAddress{s.Address(0, c.Disks[0]), s.Address(1, c.Disks[1])}
	wantDisk(t, v, at[0], "ro", "first")
	wantDisk(t, v, at[1], "rw", "second")
	Ask(t, v, "write %s changed", where(t, at[1]))
	if got := head(t, second, len("changed")); got != "changed" {
		t.Errorf("the image begins with %q after the guest has written", got)
	}
	plugger, ok := v.(hypervisor.DiskPlugger)
	if ok != s.driver.Capabilities().HotplugDisk {
		t.Fatalf("the VM plugs disks: %v, the driver says %v", ok, !ok)
	}
	if !ok {
		return
	}
	s.plugRefusals(t, plugger)
	for i := range plugs {
		text := fmt.Sprintf("round %d", i)
		mode := []string{"rw", "ro"}[i%2]
		f := image(t, text)
		address, err := plugger.AttachDisk(t.Context(), hypervisor.Disk{ID: "plugged", File: f, ReadOnly: mode == "ro"})
		if err != nil {
			t.Fatal(err)
		}
		f.Close() // the VMM has its own
		wantDisk(t, v, address, mode, text)
		if err := plugger.DetachDisk(t.Context(), "plugged"); err != nil {
			t.Fatal(err)
		}
		Ask(t, v, "nodisk %s", where(t, address))
	}
	wantDisk(t, v, at[0], "ro", "first")
	if err := plugger.DetachDisk(t.Context(), "first"); err != nil {
		t.Errorf("detach of a disk of the start: %v", err)
	}
}

func (s *suite) plugRefusals(t *testing.T, plugger hypervisor.DiskPlugger) {
	f := image(t, "")
	defer f.Close()
	readOnly, err := os.Open(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	for _, c := range []struct {
		disk hypervisor.Disk
		is   func(error) bool
	}{
		{hypervisor.Disk{ID: "first", File: f}, errdefs.IsAlreadyExists},
		{hypervisor.Disk{ID: "a b", File: f}, errdefs.IsInvalidArgument},
		{hypervisor.Disk{ID: "none"}, errdefs.IsInvalidArgument},
		{hypervisor.Disk{ID: "readonly", File: readOnly}, errdefs.IsInvalidArgument},
	} {
		if _, err := plugger.AttachDisk(t.Context(), c.disk); !c.is(err) {
			t.Errorf("attach disk %q: %v", c.disk.ID, err)
		}
	}
	if err := plugger.DetachDisk(t.Context(), "unknown"); !errdefs.IsNotFound(err) {
		t.Errorf("detach of an unknown disk: %v", err)
	}
}

func head(t *testing.T, f *os.File, n int) string {
	t.Helper()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sharedDisk: two VMs read one image at once.
func (s *suite) sharedDisk(t *testing.T) {
	shared := image(t, "shared")
	defer shared.Close()
	again, err := os.Open(filepath.Clean(shared.Name()))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	c := s.config(t)
	c.Disks = []hypervisor.Disk{{ID: "shared", File: shared, ReadOnly: true}}
	one, stopOne := s.start(t, c)
	defer stopOne()
	c.ID += "-2"
	c.RunDir = runDir(t, s.Config.User)
	c.Disks = []hypervisor.Disk{{ID: "shared", File: again, ReadOnly: true}}
	two, stopTwo := s.start(t, c)
	defer stopTwo()
	for _, v := range []hypervisor.VM{one, two} {
		wantDisk(t, v, s.Address(0, c.Disks[0]), "ro", "shared")
	}
}
