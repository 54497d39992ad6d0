package share_test

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pistis-run/pistis/internal/share"
	"github.com/pistis-run/pistis/test/posix"
)

// sample is how many cases there are for each that is done here; all are done in guests when that is asked for.
const sample = 20

// explained are the differences that must be: see docs/volumes.md.
func explained() map[string]string {
	return map[string]string{"O_TMPFILE by root": "a file without a name cannot be asked for over FUSE by kernels before 6.2"}
}

// TestPosix: a share answers as the file system that it is of. The same runs in guests, see test/integration.
func TestPosix(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	mnt, _ := mount(t, h, share.Share{Path: dir, Valid: time.Second})
	var direct, shared strings.Builder
	cases, err := posix.Run(t.TempDir(), &direct, sample)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := posix.Run(mnt, &shared, sample); err != nil {
		t.Fatal(err)
	}
	want, got := posix.Parse(direct.String()), posix.Parse(shared.String())
	differ := 0
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] && explained()[name] == "" {
			differ++
			t.Errorf("%s:\n  share %s\n  host  %s", name, got[name], want[name])
		}
	}
	t.Logf("%d cases, %d differ", cases, differ)
}
