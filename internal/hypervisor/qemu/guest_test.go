package qemu

import (
	"os"
	"testing"
	"time"

	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/hypervisor/hypervisortest"
)

// realGuest is a VM that boots testinit, or skips the test.
func realGuest(t *testing.T) hypervisor.Config {
	t.Helper()
	if testing.Short() {
		t.Skip("SKIPPED, no real guest: short tests were asked for")
	}
	if _, err := (Driver{}).Version(t.Context(), ""); err != nil {
		t.Skipf("SKIPPED, no real guest: %v", err)
	}
	guest := hypervisortest.BuildGuest(t)
	return hypervisor.Config{
		Accel: hypervisor.TCG, Kernel: guest.Kernel, Initrd: guest.Initrd, VCPUs: 1, Memory: 256 << 20,
	}
}

// TestContract boots real guests. A long run of file work is asked for with PISTIS_LONG=1.
func TestContract(t *testing.T) {
	config := realGuest(t)
	work := 3 * time.Second
	if os.Getenv("PISTIS_LONG") != "" {
		work = time.Minute
	}
	hypervisortest.Run(t, Driver{}, hypervisortest.Options{Config: config, Work: work})
}
