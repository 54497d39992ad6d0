package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUsage(t *testing.T) {
	r := roots(t)
	at, err := r.Mount(t.Context(), "x", []string{layer(t, t.TempDir(), "low", "a", "b")}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	usage := func() (bytes, inodes uint64) {
		t.Helper()
		bytes, inodes, err := r.Usage(t.Context(), "x")
		if err != nil {
			t.Fatal(err)
		}
		return bytes, inodes
	}
	before, inodes := usage()
	if inodes != 1 || before > 64<<10 {
		t.Errorf("nothing written: %d bytes, %d inodes", before, inodes)
	}
	f, err := os.Create(at + "/file")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(make([]byte, 1<<20))
	if err := errors.Join(err, f.Truncate(1<<40), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	// A link out of the root counts as a link, hard links count once, and so does what was removed.
	if err := errors.Join(os.Mkdir(at+"/d", 0o755), os.Link(at+"/file", at+"/d/again"), os.Symlink("/", at+"/d/out"), os.Remove(at+"/a")); err != nil {
		t.Fatal(err)
	}
	after, inodes := usage()
	if grown := after - before; inodes != 5 || grown < 1<<20 || grown > 1<<20+64<<10 {
		t.Errorf("%d bytes more, %d inodes; want 1 MiB and 5", grown, inodes)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := r.Usage(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	remove(t, r, "x")
}

// TestUsageStaysInside: a container that swaps directories for links gets no other tree counted.
func TestUsageStaysInside(t *testing.T) {
	r, outside := roots(t), t.TempDir()
	for i := range 200 {
		layer(t, outside, "big", fmt.Sprint(i))
	}
	at, err := r.Mount(t.Context(), "x", nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Mkdir(at+"/a", 0o755), os.Symlink(outside+"/big", at+"/b")); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if err := unix.Renameat2(unix.AT_FDCWD, at+"/a", unix.AT_FDCWD, at+"/b", unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 300 {
		if _, inodes, err := r.Usage(t.Context(), "x"); err != nil || inodes > 20 {
			t.Fatalf("%d inodes, %v", inodes, err)
		}
	}
	stop()
	wg.Wait()
	remove(t, r, "x")
}

// TestDeepTree: what is nested deeper than descriptors reach is measured and removed.
func TestDeepTree(t *testing.T) {
	r := roots(t)
	at, err := r.Mount(t.Context(), "x", nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	want := uint64(1)
	for i := range 3*maxDepth + 10 {
		err := unix.Mkdirat(dir, "d", 0o755)
		if err == nil && i%100 == 0 {
			err = unix.Mknodat(dir, "file", unix.S_IFREG|0o600, 0)
			want++
		}
		if err == nil && i == 2*maxDepth {
			for n := range 1000 { // more than one read brings, and on both sides of the way down
				err = errors.Join(err, unix.Mkdirat(dir, fmt.Sprint(n), 0o755))
			}
			want += 1000
		}
		want++
		below := -1
		if err == nil {
			below, err = unix.Openat(dir, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		}
		if err := errors.Join(err, unix.Close(dir)); err != nil {
			t.Fatal(err)
		}
		dir = below
	}
	if err := unix.Close(dir); err != nil {
		t.Fatal(err)
	}
	if _, inodes, err := r.Usage(t.Context(), "x"); err != nil || inodes != want {
		t.Errorf("%d inodes, %v; want %d", inodes, err, want)
	}
	remove(t, r, "x")
}

// TestUsageOfRemoved: a container may remove a directory that is being looked at.
func TestUsageOfRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	for _, depth := range []int{0, maxDepth + 1} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(dir)
		if err == nil {
			err = os.Remove(dir)
		}
		if err != nil {
			t.Fatal(err)
		}
		m := meter{ctx: t.Context(), linked: map[uint64]struct{}{}}
		if err := errors.Join(m.walk(f, depth), f.Close()); err != nil {
			t.Errorf("at depth %d: %v", depth, err)
		}
	}
}

// TestRemoveGoesOn: a removal that was cut short ends with the next one.
func TestRemoveGoesOn(t *testing.T) {
	r := roots(t)
	at, err := r.Mount(t.Context(), "x", nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2*batch + 10 {
		if err := os.WriteFile(filepath.Join(at, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Remove(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	remove(t, r, "x")
}
