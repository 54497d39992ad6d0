package share_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/share"
)

// updateVolume writes a version of a volume as the kubelet does it: a directory with the files, a link to it that is
// swapped in one step, links for new keys, then the removal of what is of no more use.
func updateVolume(t *testing.T, dir, version string, keys ...string) {
	t.Helper()
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(os.Mkdir(filepath.Join(dir, version), 0o755))
	for _, key := range keys {
		path := filepath.Join(dir, version, key)
		must(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(version+" "+key), 0o644))
	}
	must(os.Symlink(version, filepath.Join(dir, "..data_tmp")), os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	want := map[string]bool{}
	for _, key := range keys {
		first, _, _ := strings.Cut(key, "/")
		want[first] = true
		if err := os.Symlink("..data/"+first, filepath.Join(dir, first)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	links, err := os.ReadDir(dir)
	must(err)
	for _, e := range links {
		if !strings.HasPrefix(e.Name(), "..") && !want[e.Name()] {
			must(os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if old != "" {
		must(os.RemoveAll(filepath.Join(dir, old)))
	}
}

// watcher collects inotify's events.
type watcher struct {
	t     *testing.T
	f     *os.File
	names map[int32]string
}

// watched is a name for a path in events, and which it is to have.
type watched struct {
	name string
	mask uint32
}

func watch(t *testing.T, paths map[string]watched) *watcher {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{t: t, f: os.NewFile(uintptr(fd), "inotify"), names: map[int32]string{}}
	t.Cleanup(func() { w.f.Close() })
	for path, what := range paths {
		wd, err := unix.InotifyAddWatch(fd, path, what.mask)
		if err != nil {
			t.Fatalf("watch %s: %v", path, err)
		}
		w.names[int32(wd)] = what.name
	}
	return w
}

// until reads events until all that are wanted have come, and returns all.
func (w *watcher) until(last ...string) []string {
	w.t.Helper()
	w.f.SetReadDeadline(time.Now().Add(time.Minute))
	var events []string
	buf := make([]byte, 64<<10)
	for slices.ContainsFunc(last, func(e string) bool { return !slices.Contains(events, e) }) {
		n, err := w.f.Read(buf)
		if err != nil {
			w.t.Fatalf("waiting for %q after %q: %v", last, events, err)
		}
		events = append(events, parseEvents(buf[:n], w.names)...)
	}
	return events
}

func parseEvents(b []byte, names map[int32]string) (events []string) {
	for len(b) > 0 {
		e := parseEvent(b)
		events = append(events, strings.TrimRight(names[e.wd]+": "+describe(e.mask)+" "+e.name, " "))
		b = b[e.size:]
	}
	return events
}

type event struct {
	wd   int32
	mask uint32
	name string
	size int
}

func parseEvent(b []byte) event {
	size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
	return event{
		wd: int32(binary.NativeEndian.Uint32(b)), mask: binary.NativeEndian.Uint32(b[4:]), size: size,
		name: strings.TrimRight(string(b[unix.SizeofInotifyEvent:size]), "\x00"),
	}
}

func describe(mask uint32) string {
	var words []string
	for _, w := range []struct {
		bit  uint32
		name string
	}{
		{unix.IN_CREATE, "create"}, {unix.IN_MOVED_FROM, "moved from"}, {unix.IN_MOVED_TO, "moved to"}, {unix.IN_DELETE, "delete"},
		{unix.IN_DELETE_SELF, "gone"}, {unix.IN_ATTRIB, "attributes"}, {unix.IN_IGNORED, "ignored"}, {unix.IN_ISDIR, "directory"},
	} {
		if mask&w.bit != 0 {
			words = append(words, w.name)
			mask &^= w.bit
		}
	}
	if mask != 0 {
		words = append(words, fmt.Sprintf("%#x", mask))
	}
	return strings.Join(words, " ")
}

// TestWatch: who watches a shared volume in the guest is told of the kubelet's updates, and those who read meanwhile
// see one version or the other.
func TestWatch(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	updateVolume(t, dir, "..v1", "app.yaml", "sub/deep.yaml", "key1")
	mnt, _ := mount(t, h, share.Share{Path: dir, ReadOnly: true, Watch: true})
	stop := readAll(t, filepath.Join(mnt, "app.yaml"), filepath.Join(mnt, "sub/deep.yaml"))
	defer stop()

	entries := uint32(unix.IN_CREATE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_DELETE_SELF)
	self := uint32(unix.IN_ATTRIB | unix.IN_DELETE_SELF)
	for n := 2; n <= 8; n++ {
		w := watch(t, map[string]watched{
			mnt: {"root", entries}, filepath.Join(mnt, "..data"): {"data", entries}, filepath.Join(mnt, "..data/sub"): {"sub", entries},
			filepath.Join(mnt, "app.yaml"): {"app", self}, filepath.Join(mnt, "sub/deep.yaml"): {"deep", self},
		})
		updateVolume(t, dir, fmt.Sprintf("..v%d", n), "app.yaml", "sub/deep.yaml", fmt.Sprintf("key%d", n))
		// When a file is gone for the guest depends on who reads it meanwhile.
		events := w.until(fmt.Sprintf("root: delete directory ..v%d", n-1), "app: ignored", "deep: ignored", "sub: gone", "data: gone")
		for _, want := range [][]string{
			{fmt.Sprintf("root: create directory ..v%d", n), "root: moved to ..data", fmt.Sprintf("root: delete key%d", n-1), fmt.Sprintf("root: delete directory ..v%d", n-1)},
			{fmt.Sprintf("root: create key%d", n), fmt.Sprintf("root: delete key%d", n-1)},
			{"app: gone", "app: ignored"}, {"deep: gone", "deep: ignored"},
		} {
			if !inOrder(events, want) {
				t.Errorf("update %d: of %q not all in this order: %q", n, events, want)
			}
		}
		w.f.Close()
		b, err := os.ReadFile(filepath.Join(mnt, "app.yaml"))
		if want := fmt.Sprintf("..v%d app.yaml", n); err != nil || string(b) != want {
			t.Errorf("after the update: %q, %v; want %q", b, err, want)
		}
	}
}

func inOrder(events, want []string) bool {
	for _, e := range events {
		if len(want) > 0 && e == want[0] {
			want = want[1:]
		}
	}
	return len(want) == 0
}

// readAll reads files all the time until stop. That one is not there can happen on any host: the kubelet removes the old
// version while somebody is on the way to it. Nothing else may.
func readAll(t *testing.T, files ...string) (stop func()) {
	end := make(chan struct{})
	var readers sync.WaitGroup
	for _, file := range files {
		readers.Go(func() {
			for {
				select {
				case <-end:
					return
				default:
				}
				b, err := os.ReadFile(file)
				if err != nil && !errors.Is(err, os.ErrNotExist) || err == nil && len(b) == 0 {
					t.Errorf("read while it is updated: %q, %v", b, err)
					return
				}
			}
		})
	}
	return func() { close(end); readers.Wait() }
}

// TestWatchFollowsTheHost: what a watcher is told of ends with what is there, however fast the host changes it.
func TestWatchFollowsTheHost(t *testing.T) {
	h := startHost(t)
	dir := t.TempDir()
	mnt, _ := mount(t, h, share.Share{Path: dir, ReadOnly: true, Watch: true})
	w := watch(t, map[string]watched{mnt: {"root", unix.IN_CREATE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE}})
	for i := range 200 {
		path := filepath.Join(dir, fmt.Sprint("f", i%5))
		draft := path + ".new"
		if err := errors.Join(os.WriteFile(draft, nil, 0o644), os.Rename(draft, path)); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "last"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, e := range w.until("root: create last") {
		what, name := e[:strings.LastIndex(e, " ")], e[strings.LastIndex(e, " ")+1:]
		there[name] = what == "root: create" || what == "root: moved to"
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !there[e.Name()] {
			t.Errorf("%s is there and nobody was told", e.Name())
		}
		delete(there, e.Name())
	}
	for name, is := range there {
		if is && !strings.HasPrefix(name, "f") {
			t.Errorf("%s has gone and nobody was told", name)
		}
	}
}
