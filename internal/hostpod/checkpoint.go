package hostpod

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Names in the archive of a checkpoint, as other engines and checkpointctl have them.
const (
	checkpointImages = "checkpoint"
	checkpointLog    = "dump.log"
	checkpointStats  = "stats-dump"
	checkpointRoot   = "rootfs-diff.tar"
)

const (
	// maxDumpLog bounds what is read of criu's log, from its end, in bytes; maxDumpErrors how many of its errors are told.
	maxDumpLog    = 64 << 10
	maxDumpErrors = 3
)

// Checkpoint adds the processes of a running container, as criu writes them, criu's log and what was written to the root.
func (t *tasks) Checkpoint(ctx context.Context, container string, archive *tar.Writer) (err error) {
	if t.p.cfg.User != nil {
		return fmt.Errorf("checkpoint: the pod has a user namespace of its own, whose owners of files an archive does not tell: %w", errdefs.ErrNotImplemented)
	}
	if t.p.shim {
		return t.monitor.Checkpoint(ctx, container, "", "") // which refuses
	}
	dir, err := t.l.Roots.Work(container)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	images, work := filepath.Join(dir, checkpointImages), filepath.Join(dir, "work")
	if err := errors.Join(os.Mkdir(images, 0o700), os.Mkdir(work, 0o700)); err != nil {
		return err
	}
	if err := t.monitor.Checkpoint(ctx, container, images, work); err != nil {
		return refusal(ctx, err, filepath.Join(work, checkpointLog))
	}
	root := filepath.Join(dir, checkpointRoot)
	if err := t.writeDiff(ctx, container, root); err != nil {
		return err
	}
	if err := addImages(ctx, archive, images); err != nil {
		return err
	}
	for _, path := range []string{filepath.Join(work, checkpointLog), filepath.Join(work, checkpointStats), root} {
		if err := addFile(ctx, archive, filepath.Base(path), path); err != nil {
			return err
		}
	}
	return nil
}

func (t *tasks) writeDiff(ctx context.Context, container, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(t.l.Roots.Diff(ctx, container, f), f.Close())
}

// refusal says why there is no checkpoint: in criu's words, where it has left any, and what is to blame is not the daemon.
func refusal(ctx context.Context, err error, log string) error {
	if ctx.Err() != nil {
		return err
	}
	if errdefs.IsNotImplemented(err) {
		return fmt.Errorf("the runtime was built without checkpoints; runc has them: %w", err)
	}
	words, readErr := dumpErrors(log)
	switch {
	case readErr != nil && !errors.Is(readErr, os.ErrNotExist):
		return errors.Join(err, readErr)
	case words != "":
		return fmt.Errorf("criu cannot: %s: %v: %w", words, err, errdefs.ErrFailedPrecondition)
	case strings.Contains(err.Error(), "criu"):
		return fmt.Errorf("criu cannot, `criu check` says more: %v: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}

// dumpErrors are the last errors in criu's log.
func dumpErrors(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-maxDumpLog), maxDumpLog))
	if err != nil {
		return "", err
	}
	return lastDumpErrors(text), nil
}

// lastDumpErrors joins the last errors: "(00.012345) Error (criu/x.c:1): text" is a line of them.
func lastDumpErrors(log []byte) string {
	var found []string
	for line := range bytes.Lines(log) {
		if _, text, ok := strings.Cut(string(line), "Error ("); ok {
			found = append(found, "("+strings.ToValidUTF8(strings.TrimSpace(text), "?"))
		}
	}
	return strings.Join(found[max(0, len(found)-maxDumpErrors):], "; ")
}

// addImages adds the directory of criu's images.
func addImages(ctx context.Context, archive *tar.Writer, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: checkpointImages + "/", Mode: 0o700}); err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue // a link to the images of an earlier dump, of which there is none
		}
		if err := addFile(ctx, archive, checkpointImages+"/"+e.Name(), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func addFile(ctx context.Context, archive *tar.Writer, name, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: info.Size(), ModTime: info.ModTime()}); err != nil {
		return err
	}
	_, err = io.Copy(archive, f)
	return err
}
