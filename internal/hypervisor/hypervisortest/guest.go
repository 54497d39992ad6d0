package hypervisortest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pistis-run/pistis/internal/guestimage"
	"github.com/pistis-run/pistis/internal/hypervisor"
	"github.com/pistis-run/pistis/internal/transport"
)

// initPackage is the guest's first process.
const initPackage = "github.com/pistis-run/pistis/internal/hypervisor/hypervisortest/testinit"

// Acceleration is how the tests' guests run: emulated, so that they run anywhere, unless PISTIS_ACCELERATION says kvm.
func Acceleration() hypervisor.Acceleration {
	if os.Getenv("PISTIS_ACCELERATION") == string(hypervisor.KVM) {
		return hypervisor.KVM
	}
	return hypervisor.TCG
}

// memoryModules are what a guest of these tests loads beside what guests need.
func memoryModules() (names []string) {
	for _, driver := range transport.MemoryDrivers() {
		names = append(names, filepath.Base(driver))
	}
	return names
}

// BuildGuest makes a guest whose first process is testinit, or takes the one that lies in PISTIS_TEST_GUEST. The kernel is
// the one of the product's guest: it is taken from the cache beside $PISTIS_GUEST, else from the user's cache directory, and
// fetched if it is in neither. Where that fails the test is skipped, or fails if PISTIS_GUEST is set.
func BuildGuest(t testing.TB) guestimage.Guest {
	t.Helper()
	if ready := os.Getenv("PISTIS_TEST_GUEST"); ready != "" {
		guest, err := guestimage.Load(ready)
		if err != nil {
			t.Fatal(err)
		}
		return guest
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "testinit")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, initPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build testinit: %v\n%s", err, out)
	}
	made := os.Getenv("PISTIS_GUEST")
	cache := filepath.Join(filepath.Dir(made), "kernels")
	if made == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			t.Skipf("SKIPPED, no real guest: %v", err)
		}
		cache = filepath.Join(user, "pistis", "kernels")
	}
	guest, err := guestimage.Build(t.Context(), guestimage.Options{
		Dir: filepath.Join(dir, "guest"), Agent: program, Runc: program, CacheDir: cache, ExtraModules: memoryModules(),
	})
	switch {
	case err != nil && made == "":
		t.Skipf("SKIPPED, no real guest: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	return guest
}
