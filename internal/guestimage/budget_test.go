package guestimage

import (
	"os"
	"testing"
)

// TestInitrdBudget looks at the guest that was built for the tests.
func TestInitrdBudget(t *testing.T) {
	dir := os.Getenv("PISTIS_GUEST")
	if dir == "" {
		t.Skip("SKIPPED: PISTIS_GUEST names no guest: run `make test`")
	}
	guest, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(guest.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	const budget = 16 << 20
	if info.Size() > budget {
		t.Errorf("the initrd has %.1f MiB, the budget is %d", float64(info.Size())/(1<<20), budget>>20)
	}
	t.Logf("initrd: %.1f MiB with %d modules", float64(info.Size())/(1<<20), len(guest.Modules))
}
