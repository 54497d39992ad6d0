package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// maxSize is the agent's budget: every guest holds it in memory.
const maxSize = 14 << 20

func TestSize(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the agent")
	}
	out := filepath.Join(t.TempDir(), "pistis-agent")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MiB", float64(info.Size())/(1<<20))
	if info.Size() > maxSize {
		t.Errorf("the agent has %d bytes, its budget is %d", info.Size(), maxSize)
	}
}
