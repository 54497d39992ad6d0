package container

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/task"
)

// specNote is the name of the runtime-spec in the archive of a checkpoint.
const specNote = "spec.dump"

// Checkpoint writes a running container, which goes on, into a new archive at location. The notes are files beside what the
// container's sandbox has to say, as JSON. On error nothing is left of the archive.
func (m *Manager) Checkpoint(ctx context.Context, id, location string, notes map[string]any) error {
	if err := writable(location); err != nil {
		return err
	}
	c, err := m.find(id)
	if err != nil {
		return err
	}
	if !c.checkpointing.TryLock() { // no claim, which whoever stops the container would wait for
		return fmt.Errorf("another checkpoint of it is being made, wait for its end: %w", errdefs.ErrFailedPrecondition)
	}
	defer c.checkpointing.Unlock()
	rec, tasks, err := m.running(ctx, c.snapshot().ID, Running)
	if err != nil {
		return err
	}
	checkpointer, ok := tasks.(task.Checkpointer)
	if !ok {
		return fmt.Errorf("its pod is a virtual machine; checkpoints are of pods on the host's kernel: %w", errdefs.ErrNotImplemented)
	}
	return newFile(location, func(f *os.File) error {
		archive := tar.NewWriter(f)
		if err := m.addNotes(archive, rec, notes); err != nil {
			return err
		}
		if err := checkpointer.Checkpoint(ctx, rec.ID, archive); err != nil {
			return err
		}
		return archive.Close()
	})
}

// writable says why there can be no new file at a path.
func writable(location string) error {
	if !filepath.IsAbs(location) {
		return fmt.Errorf("location %q is not absolute: %w", location, errdefs.ErrInvalidArgument)
	}
	if info, err := os.Stat(filepath.Dir(location)); err != nil {
		return fmt.Errorf("location: make its directory first: %w: %w", err, errdefs.ErrInvalidArgument)
	} else if !info.IsDir() {
		return fmt.Errorf("location: %s is no directory: %w", filepath.Dir(location), errdefs.ErrInvalidArgument)
	}
	_, err := os.Lstat(location)
	switch {
	case err == nil:
		return occupied(location)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("location: %w: %w", err, errdefs.ErrInvalidArgument)
}

func occupied(location string) error {
	return fmt.Errorf("location %s: there is a file already, and it stays: %w", location, errdefs.ErrAlreadyExists)
}

// newFile makes a file that gets its name when it is whole. Nobody but root reads it: a container's memory holds secrets.
func newFile(location string, write func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(location), ".checkpoint-")
	if err != nil {
		return fmt.Errorf("location: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("location: %w", err)
	}
	if err := os.Link(f.Name(), location); errors.Is(err, fs.ErrExist) {
		return occupied(location)
	} else if err != nil {
		return fmt.Errorf("location: %w", err)
	}
	return nil
}

// addNotes adds the spec, as the runtime has it, and the notes.
func (m *Manager) addNotes(archive *tar.Writer, rec record, notes map[string]any) error {
	spec, err := os.ReadFile(filepath.Join(m.bundle(rec.ID), "config.json"))
	if err != nil {
		return fmt.Errorf("spec: %w", err)
	}
	if err := addNote(archive, specNote, spec); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(notes)) {
		data, err := json.MarshalIndent(notes[name], "", "  ")
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := addNote(archive, name, data); err != nil {
			return err
		}
	}
	return nil
}

func addNote(archive *tar.Writer, name string, data []byte) error {
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: time.Now()}); err != nil {
		return err
	}
	_, err := archive.Write(data)
	return err
}
