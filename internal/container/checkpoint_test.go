package container

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
)

// hostTasks are processes on the host's kernel, of which there are checkpoints.
type hostTasks struct{ fakeTasks }

func (f hostTasks) Checkpoint(_ context.Context, _ string, archive *tar.Writer) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(addNote(archive, "checkpoint/pages-1.img", []byte("memory")), f.faults["checkpoint"])
}

// begin runs a container of a pod, with a spec in its bundle.
func begin(t *testing.T, w *world) (*Manager, string) {
	t.Helper()
	m := newManager(t, w, t.TempDir())
	id := mustStart(t, m)
	if err := os.MkdirAll(m.bundle(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.bundle(id), "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return m, id
}

func TestCheckpoint(t *testing.T) {
	w := newWorld()
	w.host = true
	m, id := begin(t, w)
	dir := t.TempDir()
	location := filepath.Join(dir, "a.tar")
	if err := m.Checkpoint(t.Context(), id, location, map[string]any{"config.dump": map[string]string{"id": id}}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(location)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	var found []string
	archive := tar.NewReader(f)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		found = append(found, h.Name)
	}
	if want := []string{"spec.dump", "config.dump", "checkpoint/pages-1.img"}; !slices.Equal(found, want) {
		t.Errorf("archive has %q, want %q", found, want)
	}
	c, err := m.find(id)
	if err != nil {
		t.Fatal(err)
	}
	c.checkpointing.Lock()
	if err := m.Checkpoint(t.Context(), id, filepath.Join(dir, "second.tar"), nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second checkpoint at a time: %v", err)
	}
	c.checkpointing.Unlock()
	w.fail("checkpoint", errdefs.ErrFailedPrecondition)
	for location, is := range map[string]func(error) bool{
		location:                          errdefs.IsAlreadyExists,
		"a.tar":                           errdefs.IsInvalidArgument,
		filepath.Join(dir, "none", "a"):   errdefs.IsInvalidArgument,
		filepath.Join(location, "a"):      errdefs.IsInvalidArgument,
		filepath.Join(dir, "refused.tar"): errdefs.IsFailedPrecondition,
	} {
		if err := m.Checkpoint(t.Context(), id, location, nil); !is(err) {
			t.Errorf("checkpoint at %s: %v", location, err)
		}
	}
	if err := m.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.Checkpoint(t.Context(), id, filepath.Join(dir, "ended.tar"), nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("checkpoint of a container that has ended: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestCheckpointOfVM(t *testing.T) {
	m, id := begin(t, newWorld())
	dir := t.TempDir()
	if err := m.Checkpoint(t.Context(), id, filepath.Join(dir, "a.tar"), nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("checkpoint of a VM's container: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
