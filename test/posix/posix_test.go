package posix_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/pistis-run/pistis/test/posix"
)

// TestAgain: the same file system gives the same lines twice.
func TestAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: the cases give files to other users: they need root")
	}
	var lines [2]bytes.Buffer
	for i := range lines {
		n, err := posix.Run(t.TempDir(), &lines[i], 4)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d cases", n)
	}
	a, b := posix.Parse(lines[0].String()), posix.Parse(lines[1].String())
	for name := range a {
		if a[name] != b[name] {
			t.Errorf("%s: %s, then %s", name, a[name], b[name])
		}
	}
}

func TestExercise(t *testing.T) {
	for seed := range uint64(3) {
		if _, err := posix.Exercise(t.TempDir()+"/file", seed, 500); err != nil {
			t.Error(err)
		}
	}
}
