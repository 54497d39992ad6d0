package daemon

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/hostpod"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/taskshim"
)

// shimAbilities is what the shim of a handler says of its runtime. It is asked once for each program that it is, and again when
// that was replaced.
type shimAbilities struct {
	name    string
	handler config.Handler
	log     *slog.Logger

	mu     sync.Mutex
	asked  program
	answer taskshim.Abilities
}

// program is a file as it was at some time.
type program struct {
	path       string
	inode      uint64
	size       int64
	sec, nanos int64 // of its last change
}

// programAt is the one at a path, through symbolic links.
func programAt(path string) (program, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return program{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return program{path: path, inode: st.Ino, size: st.Size, sec: st.Ctim.Sec, nanos: st.Ctim.Nsec}, nil
}

// get is nothing where there is no shim, or it does not say.
func (s *shimAbilities) get() taskshim.Abilities {
	path, err := s.handler.FindContainerdShim(s.name)
	if err != nil {
		return taskshim.Abilities{}
	}
	now, err := programAt(path)
	if err != nil {
		return taskshim.Abilities{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == now {
		return s.answer
	}
	s.answer = taskshim.Abilities{}
	options, err := s.handler.ShimOptions("", true) // what it may have was decided when the handler was opened
	if err == nil {
		s.answer, err = taskshim.Ask(context.Background(), path, options)
	}
	if err != nil {
		s.log.Info("the shim does not say what its runtime can: user namespaces and recursive read-only mounts are not offered", logfields.Handler, s.name, logfields.Error, err)
	}
	s.asked = now
	return s.answer
}

func (s *shimAbilities) recursiveReadOnly() error {
	if !s.get().RecursiveReadOnly {
		return fmt.Errorf("handler %s: its runtime does not make mounts read-only recursively; leave recursiveReadOnly out, or use another RuntimeClass: %w", s.name, errdefs.ErrFailedPrecondition)
	}
	return hostpod.CheckRecursiveReadOnly()
}
