package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const updates = 3

// settings is a volume as the kubelet makes and updates it.
type settings struct {
	t   *testing.T
	dir string
}

func newSettings(t *testing.T, kind string) settings {
	s := settings{t, filepath.Join(volume(t), "volumes/kubernetes.io~"+kind+"/settings")}
	s.update(1)
	for _, key := range []string{"a", "b"} {
		if err := os.Symlink("..data/"+key, filepath.Join(s.dir, key)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// update puts version n in the place of the one before, in one step.
func (s settings) update(n int) {
	s.t.Helper()
	name := fmt.Sprintf("..v%d", n)
	write(s.t, filepath.Join(s.dir, name, "a"), fmt.Sprintf("a%d\n", n))
	write(s.t, filepath.Join(s.dir, name, "b"), fmt.Sprintf("b%d\n", n))
	tmp := filepath.Join(s.dir, "..data_tmp")
	if err := errors.Join(os.Symlink(name, tmp), os.Rename(tmp, filepath.Join(s.dir, "..data")), os.RemoveAll(filepath.Join(s.dir, fmt.Sprintf("..v%d", n-1)))); err != nil {
		s.t.Fatal(err)
	}
}

// TestReloaders: programs that watch their configuration hear of every update, in every kind of volume that the kubelet
// updates, and in all containers.
func TestReloaders(t *testing.T) {
	d := startDaemon(t, "")
	d.pull(testImage)
	pod, config := d.runPod("reloaders", nil)
	var all []settings
	var mounts []*runtime.Mount
	for _, kind := range []string{"configmap", "secret", "projected", "downward-api"} {
		s := newSettings(t, kind)
		all = append(all, s)
		mounts = append(mounts, &runtime.Mount{HostPath: s.dir, ContainerPath: "/etc/settings/" + kind, Readonly: true})
	}
	var watchers []string
	for _, name := range []string{"one", "two"} {
		watchers = append(watchers, d.launch(pod, config, guestSide(t, name, "TestReloadInGuest", "/etc/settings", mounts...)))
	}
	log := func(id string) string { return d.logOf(d.status(id), "stdout") }
	defer func() {
		for _, id := range watchers {
			t.Logf("a watcher's log:\n%s", log(id))
		}
	}()
	for n := 1; n <= updates; n++ {
		for _, id := range watchers {
			eventually(t, "watchers", func() bool { return strings.Contains(log(id), fmt.Sprintf("watching %d", n)) })
		}
		for _, s := range all {
			s.update(n + 1)
		}
	}
	for _, id := range watchers {
		d.wait(id)
		out := log(id)
		if !strings.Contains(out, "--- PASS: TestReloadInGuest") {
			t.Error("a watcher did not hear of all updates")
		}
	}
}

// TestReloadInGuest watches as configuration reloaders do: the directory, as those do that wait for a new ..data, and
// the file, as those do that wait for its removal.
func TestReloadInGuest(t *testing.T) {
	dir := os.Getenv(guestDir)
	if dir == "" {
		t.Skip("it runs inside a guest, started by TestReloaders")
	}
	kinds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= updates; n++ {
		// Two watchers: one that has a directory and a file in it leaves out the file's removal.
		ofDir, ofFile := newWatcher(t), newWatcher(t)
		missing := map[string]bool{}
		for _, kind := range kinds {
			at := filepath.Join(dir, kind.Name())
			if err := errors.Join(ofDir.Add(at), ofFile.Add(filepath.Join(at, "a"))); err != nil {
				t.Fatal(err)
			}
			missing["CREATE "+filepath.Join(at, "..data")] = true
			missing["REMOVE "+filepath.Join(at, "a")] = true
		}
		fmt.Println("watching", n)
		timeout := time.After(patience)
		for len(missing) > 0 {
			var e fsnotify.Event
			select {
			case e = <-ofDir.Events:
			case e = <-ofFile.Events:
			case <-timeout:
				t.Fatalf("update %d: no event %v", n, missing)
			}
			t.Log(e)
			delete(missing, fmt.Sprint(e.Op, " ", e.Name))
		}
		for _, kind := range kinds {
			expect(t, "the new version in "+kind.Name(), read(t, filepath.Join(dir, kind.Name(), "a")), fmt.Sprintf("a%d\n", n+1))
		}
		if err := errors.Join(ofDir.Close(), ofFile.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func newWatcher(t *testing.T) *fsnotify.Watcher {
	t.Helper()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	return w
}
