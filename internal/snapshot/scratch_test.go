package snapshot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

func TestNewScratch(t *testing.T) {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("SKIPPED: mkfs.ext4 is not installed")
	}
	l := openDisks(t)
	dir := t.TempDir()
	for i, size := range []int64{minScratch, 10<<30 + 1, 10 << 30, 1 << 40} {
		path := filepath.Join(dir, fmt.Sprint(i))
		for range 2 { // from a new template, and from an old one
			if err := l.NewScratch(t.Context(), path, size); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode() != 0o600 || info.Size() < size || info.Size() >= size+blockSize {
				t.Errorf("%d: %+v, %v", size, info, err)
			}
			if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 64<<20 {
				t.Errorf("%d: %d bytes are allocated", size, used)
			}
			if size < 1<<40 {
				fsck(t, path)
			}
			if err := l.NewScratch(t.Context(), path, size); !errdefs.IsAlreadyExists(err) {
				t.Errorf("twice: %v", err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, size := range []int64{-1, 0, minScratch - 1, maxScratch + 1} {
		if err := l.NewScratch(t.Context(), filepath.Join(dir, "x"), size); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d: %v", size, err)
		}
	}
	if err := l.NewScratch(t.Context(), filepath.Join(dir, "none", "x"), minScratch); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func BenchmarkNewScratch(b *testing.B) {
	l := openDisks(b)
	path := filepath.Join(b.TempDir(), "disk")
	for b.Loop() {
		if err := l.NewScratch(b.Context(), path, 10<<30); err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(path)
	}
}
