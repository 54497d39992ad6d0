package rootfs

import (
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

// TestWatched: who asks for a usage is told a recent one and does not wait, and one that is too old is told to nobody.
func TestWatched(t *testing.T) {
	r := roots(t)
	at, err := r.Mount(t.Context(), "x", nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := Watch(r)
		defer w.Close()
		expect := func(when string, want uint64) {
			t.Helper()
			_, inodes, err := w.Usage(t.Context(), "x")
			if inodes != want || err != nil {
				t.Errorf("%s: %d inodes instead of %d, %v", when, inodes, want, err)
			}
		}
		write := func(name string) {
			t.Helper()
			if err := os.WriteFile(at+"/"+name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		expect("at first", 1)
		write("a")
		time.Sleep(fresh - 1)
		expect("while it is fresh", 1)
		time.Sleep(1)
		expect("when it is not", 1)
		w.work.Wait()
		expect("after it was measured again", 2)
		write("b")
		time.Sleep(stale)
		expect("after nobody asked for long", 3)
		if err := w.Remove(t.Context(), "x"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.Usage(t.Context(), "x"); !errdefs.IsNotFound(err) || len(w.known) > 0 {
			t.Errorf("after the removal: %v, known: %v", err, w.known)
		}
	})
}

// TestTotal: all roots count, but for what only looks like one or cannot be measured.
func TestTotal(t *testing.T) {
	r := roots(t)
	for _, id := range []string{"x", "y"} {
		at, err := r.Mount(t.Context(), id, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at+"/file", make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(r.dir+"/other", 0o700); err != nil {
		t.Fatal(err)
	}
	w := Watch(r)
	defer w.Close()
	if bytes, inodes, err := w.Total(t.Context()); err != nil || bytes < 2<<20 || bytes > 3<<20 || inodes != 4 {
		t.Errorf("%d bytes, %d inodes, %v", bytes, inodes, err)
	}
	for _, id := range []string{"x", "y"} {
		if err := w.Remove(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if err := os.Remove(r.dir + "/other"); err != nil {
		t.Error(err)
	}
}
