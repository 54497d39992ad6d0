package container

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/task"
)

func TestRecover(t *testing.T) {
	for name, c := range map[string]struct {
		change func(r *record, w *world)
		want   State // empty: removed
		code   int32
	}{
		"still running": {func(*record, *world) {}, Running, 0},
		"exited meanwhile": {func(r *record, w *world) {
			w.procs[task.ID{Container: r.ID}].end(task.Exit{Code: 5, At: time.Now()})
		}, Exited, 5},
		"pod ended":           {func(_ *record, w *world) { w.crash("gone") }, Exited, 255},
		"unknown to the shim": {func(_ *record, w *world) { clear(w.procs) }, Exited, 255},
		"created": {func(r *record, w *world) {
			r.State = Created
			w.procs[task.ID{Container: r.ID}].started = false
		}, Created, 0},
		"created, pod ended": {func(r *record, w *world) {
			r.State = Created
			w.crash("gone")
		}, Exited, 255},
		"starting, was started": {func(r *record, _ *world) { r.State = Starting }, Running, 0},
		"starting, was not": {func(r *record, w *world) {
			r.State = Starting
			w.procs[task.ID{Container: r.ID}].started = false
		}, Running, 0},
		"starting, pod ended": {func(r *record, w *world) {
			r.State = Starting
			w.crash("gone")
		}, Exited, 128},
		"half created": {func(r *record, w *world) {
			r.State = Creating
			w.procs[task.ID{Container: r.ID}].started = false
		}, "", 0},
		"half removed": {func(r *record, w *world) {
			r.State = Removing
			w.procs[task.ID{Container: r.ID}].end(task.Exit{})
		}, "", 0},
		"pod removed": {func(_ *record, w *world) {
			w.gone = true
			clear(w.procs)
		}, "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := newWorld(), t.TempDir()
			first := newManager(t, w, dir)
			id := mustStart(t, first)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			found, _ := first.find(id)
			rec := found.snapshot()
			c.change(&rec, w)
			if err := first.records.Put(id, rec); err != nil {
				t.Fatal(err)
			}

			m := newManager(t, w, dir)
			if err := m.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.want == "" {
				if _, err := m.Status(t.Context(), id); !errdefs.IsNotFound(err) {
					t.Errorf("still there: %v", err)
				}
				assertNothing(t, w, dir)
				return
			}
			var s Status
			if c.want == Exited {
				s = awaitExit(t, m, id)
			} else {
				s, _ = m.Status(t.Context(), id)
			}
			if s.State != c.want || s.ExitCode != c.code {
				t.Errorf("got %+v", s)
			}
			if _, err := m.Create(t.Context(), config("a")); err == nil {
				t.Error("its name is free")
			}
			if err := m.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRecoverSweeps(t *testing.T) {
	w, dir := newWorld(), t.TempDir()
	lost := task.ID{Container: "lost"}
	w.procs[lost] = newProc()
	w.procs[lost].started = true
	w.uses["lost"] = true
	if err := os.MkdirAll(filepath.Join(dir, "bundles", "lost"), 0o700); err != nil {
		t.Fatal(err)
	}
	m := newManager(t, w, dir)
	if err := os.WriteFile(filepath.Join(dir, "records", "lost.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "records", "corrupt")); err != nil {
		t.Fatal(err)
	}
	assertNothing(t, w, dir)
}
