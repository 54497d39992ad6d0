package hostpod

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestCheckRuntime(t *testing.T) {
	controllers := filepath.Join(t.TempDir(), "cgroup.controllers")
	for _, test := range []struct {
		path, controllers string
		ok                bool
	}{
		{"/usr/bin/runc", "hugetlb\n", true}, {"/usr/bin/crun", "\n", true}, {"/usr/bin/crun", "hugetlb\n", false},
	} {
		if err := os.WriteFile(controllers, []byte(test.controllers), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkRuntime(test.path, controllers); errdefs.IsFailedPrecondition(err) == test.ok {
			t.Errorf("%s with %q: %v", test.path, test.controllers, err)
		}
	}
	if err := checkRuntime("/usr/bin/crun", controllers+".none"); err != nil {
		t.Errorf("a host with one hierarchy: %v", err)
	}
}
