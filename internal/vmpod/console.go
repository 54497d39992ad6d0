package vmpod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pistis-run/pistis/internal/bundle"
	"github.com/pistis-run/pistis/internal/logfields"
)

const (
	// consoleSuffix ends the names of consoles, which begin with the sandbox's id.
	consoleSuffix = ".log"
	// keptConsoles is how many are kept, the latest. Each has at most 2 MiB.
	keptConsoles = 32
)

func (l *Launcher) console(id string) string { return filepath.Join(l.ConsoleDir, id+consoleSuffix) }

// consoles are the files of a bundle with what the guest wrote to its console, the older first; none where there is nothing
// to be read. The shim removes them when its VM ends as it should, and who stops an older shim does.
func consoles(b bundle.Dir) (files []string) {
	for _, path := range []string{b.Console() + ".old", b.Console()} {
		if info, err := os.Stat(path); err == nil && info.Size() > 0 {
			files = append(files, path)
		}
	}
	return files
}

// whole tells where all of the console of a VM that ended by itself is going to be; empty where there is none.
func (l *Launcher) whole(id string) string {
	if len(consoles(bundle.Dir(l.bundle(id)))) == 0 {
		return ""
	}
	return "; the guest's whole console: " + l.console(id)
}

// keepConsole takes the console of a VM that did not end as it should out of the bundle, which is to be removed. What keeps
// it from doing so, a full disk for one, does not keep the pod from being removed.
func (l *Launcher) keepConsole(ctx context.Context, id string) {
	from := consoles(bundle.Dir(l.bundle(id)))
	if len(from) == 0 {
		return
	}
	err := concatenate(l.console(id), from)
	if err == nil {
		err = l.pruneConsoles()
	}
	if err != nil {
		l.Log.WarnContext(ctx, "the console of a virtual machine is not kept", logfields.Sandbox, id, logfields.Error, err)
		return
	}
	l.Log.InfoContext(ctx, "a virtual machine did not end as it should; its console is kept", logfields.Sandbox, id, logfields.Path, l.console(id))
}

func concatenate(to string, from []string) (err error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(to)) // a part would be taken for the whole
		}
	}()
	for _, path := range from {
		part, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, part)
		part.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// pruneConsoles removes the oldest that are too many.
func (l *Launcher) pruneConsoles() error {
	entries, err := os.ReadDir(l.ConsoleDir)
	if err != nil {
		return fmt.Errorf("consoles: %w", err)
	}
	written := map[string]time.Time{}
	var names []string
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), consoleSuffix) {
			names, written[e.Name()] = append(names, e.Name()), info.ModTime()
		}
	}
	slices.SortFunc(names, func(a, b string) int { return written[a].Compare(written[b]) })
	for _, name := range names[:max(0, len(names)-keptConsoles)] {
		if err := os.Remove(filepath.Join(l.ConsoleDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("consoles: %w", err)
		}
	}
	return nil
}
