package share_test

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/share"
)

// churn changes names in directories below dir at random, and the directories' own attributes.
func churn(dir string, random *rand.Rand, steps int) {
	dirs := []string{"a", "b", "a/c"}
	in := func() string { return filepath.Join(dir, dirs[random.IntN(len(dirs))]) }
	name := func() string { return filepath.Join(in(), fmt.Sprint("name", random.IntN(6))) }
	for range steps {
		// What cannot be done is not.
		switch random.IntN(12) {
		case 0, 1:
			if f, err := os.OpenFile(name(), os.O_CREATE|os.O_RDWR, 0o644); err == nil {
				_ = f.Close()
			}
		case 2:
			_ = unix.Mkdir(name(), 0o755)
		case 3:
			_ = unix.Rmdir(name())
		case 4:
			_ = unix.Unlink(name())
		case 5:
			_ = unix.Rename(name(), name())
		case 6:
			_ = unix.Renameat2(unix.AT_FDCWD, name(), unix.AT_FDCWD, name(), unix.RENAME_EXCHANGE)
		case 7:
			_ = unix.Link(name(), name())
		case 8:
			_ = unix.Symlink("anywhere", name())
		case 9:
			_ = unix.Chmod(in(), 0o700|uint32(random.IntN(0o100)))
		case 10:
			_, _ = os.ReadDir(in())
		case 11:
			var st unix.Stat_t
			_ = unix.Lstat(in(), &st)
		}
	}
}

// TestDirectoriesAgree: what is believed of directories is true after each of many changes, however long it may be believed. Of several
// processes it need not be: an answer of the kernel's own question may come after that to a change which it has not seen.
func TestDirectoriesAgree(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "a/c"), 0o755), os.Mkdir(filepath.Join(dir, "b"), 0o755)); err != nil {
		t.Fatal(err)
	}
	mnt, _ := mount(t, h, share.Share{Path: dir, Valid: time.Hour})
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 500 {
		churn(mnt, random, 1+random.IntN(4))
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			var host, guest unix.Stat_t
			if err := errors.Join(unix.Lstat(filepath.Join(mnt, path[len(dir):]), &guest), unix.Lstat(path, &host)); err != nil {
				return err
			}
			if host.Mode != guest.Mode || host.Nlink != guest.Nlink || host.Size != guest.Size || host.Mtim != guest.Mtim || host.Ctim != guest.Ctim {
				t.Errorf("round %d: %s is believed to be %+v, and is %+v", round, path[len(dir):], guest, host)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
