package leak

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestFilesOfPodsAreLeaks: the places are those of internal/daemon.
func TestFilesOfPodsAreLeaks(t *testing.T) {
	s := Scope{Root: filepath.Join(t.TempDir(), "root"), State: filepath.Join(t.TempDir(), "state"), Bridge: "leaktest0"}
	if found, err := Find(s); err != nil || len(found) != 0 {
		t.Fatalf("an empty host: %v, %v", found, err)
	}
	for _, name := range []string{"state/pods/p", "state/bundles/c", "state/netns/p", "state/host/runc/p", "root/sandboxes/p.json", "root/containers/c.json", "root/scratch/p.img", "root/network/cni/pods/p.json"} {
		side, rest, _ := strings.Cut(name, "/")
		path := filepath.Join(map[string]string{"root": s.Root, "state": s.State}[side], rest)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if found, err := Find(s); err != nil || !slices.Contains(found, "file: "+path) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	ledger := filepath.Join(s.Root, "network", "bridge", "leaktest0.json")
	if err := os.MkdirAll(filepath.Dir(ledger), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ledger, []byte(`{"version":1,"pods":{"p1":{"index":2}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if found, err := Find(s); err != nil || !slices.ContainsFunc(found, func(line string) bool { return strings.HasPrefix(line, "address: pod p1") }) {
		t.Errorf("a lost address: %v, %v", found, err)
	}
}
