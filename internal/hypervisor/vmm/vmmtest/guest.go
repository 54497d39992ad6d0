package vmmtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pistis-run/pistis/internal/guestimage"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
)

// RealGuest is a VM that boots testinit, in a jail and as a user of its own, or skips the test.
func RealGuest(t *testing.T, driver hypervisor.Driver, memory uint64) hypervisor.Config {
	t.Helper()
	switch {
	case testing.Short():
		t.Skip("SKIPPED, no real guest: short tests were asked for")
	case os.Getuid() != 0:
		t.Skip("SKIPPED, no real guest: it needs root")
	case hypervisortest.Acceleration() != hypervisor.KVM:
		t.Skip("SKIPPED, no real guest: it needs a host whose KVM works, and PISTIS_ACCELERATION=kvm")
	}
	if _, err := driver.Version(t.Context(), ""); err != nil {
		t.Skipf("SKIPPED, no real guest: %v", err)
	}
	guest := hypervisortest.BuildGuest(t)
	kernel := guest.Kernel
	if driver.Capabilities().ELFKernel {
		kernel = vmlinux(t, kernel)
	}
	return hypervisor.Config{
		ID: "test", Accel: hypervisor.KVM, Kernel: kernel, Initrd: guest.Initrd, Size: hypervisor.Size{VCPUs: 1, Memory: memory},
		User: &hypervisor.User{UID: vmmID, GID: vmmID},
	}
}

func vmlinux(t *testing.T, kernel string) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "vmlinux"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := guestimage.WriteVmlinux(f, kernel); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
