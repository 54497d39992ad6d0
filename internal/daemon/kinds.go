package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
)

// kinds are the types of the handlers, for the records of their pods: another type finds nothing of them, and ends nothing.
type kinds struct {
	handlers map[string]config.Handler
	paths    paths
}

// Of is what a handler is now.
func (k kinds) Of(handler string) string { return k.handlers[handler].Type }

// Check refuses a handler that is of another type than when it made a pod of which something is there.
func (k kinds) Check(id, handler, kind string) error {
	now, configured := k.handlers[handler]
	if !configured || now.Type == kind {
		return nil
	}
	dir := filepath.Join(k.paths.hostPods(), handler)
	if kind == config.HandlerVM {
		dir = k.paths.pods()
	}
	if _, err := os.Lstat(filepath.Join(dir, id)); errors.Is(err, fs.ErrNotExist) {
		return nil // as after the machine's restart
	} else if err != nil {
		return err
	}
	return fmt.Errorf("pod %.13s was made by handler %s of type %q, which is %q now: set handlers.%s.type = %q, and stop and remove its pods before it is changed: %w",
		id, handler, kind, now.Type, handler, kind, errdefs.ErrFailedPrecondition)
}
