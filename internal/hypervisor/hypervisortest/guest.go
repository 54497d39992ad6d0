package hypervisortest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pistis-run/pistis/internal/guestimage"
)

// initPackage is the guest's first process.
const initPackage = "github.com/pistis-run/pistis/internal/hypervisor/hypervisortest/testinit"

// BuildGuest makes a guest whose first process is testinit. The kernel is the one of the product's guest: it
// is taken from the cache beside $PISTIS_GUEST, else from the user's cache directory, and fetched if it is in
// neither. Where that fails the test is skipped, or fails if PISTIS_GUEST is set.
func BuildGuest(t testing.TB) guestimage.Guest {
	t.Helper()
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
		Dir: filepath.Join(dir, "guest"), Agent: program, Runc: program, CacheDir: cache,
	})
	switch {
	case err != nil && made == "":
		t.Skipf("SKIPPED, no real guest: %v", err)
	case err != nil:
		t.Fatal(err)
	}
	return guest
}
