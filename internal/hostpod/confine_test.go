package hostpod

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestProfileLoaded(t *testing.T) {
	list := filepath.Join(t.TempDir(), "profiles")
	if err := os.WriteFile(list, []byte("docker-default (enforce)\nlsb_release (complain)\n/usr/bin/man (enforce)\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"docker-default", "lsb_release", "/usr/bin/man"} {
		if err := profileLoaded(list, name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"docker", "enforce", "lsb_release (complain)"} {
		if err := profileLoaded(list, name); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
