package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/pistis-run/pistis/internal/config"
	"github.com/pistis-run/pistis/internal/hostpod"
	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/taskshim"
)

// shimAbilities is what the shim of a handler says of its runtime. It is asked once for each program that it is.
type shimAbilities struct {
	name    string
	handler config.Handler
	log     *slog.Logger

	mu     sync.Mutex
	asked  string // the program
	answer taskshim.Abilities
}

// get is nothing where there is no shim, or it does not say.
func (s *shimAbilities) get() taskshim.Abilities {
	path, err := s.handler.FindContainerdShim(s.name)
	if err != nil {
		return taskshim.Abilities{}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asked == path {
		return s.answer
	}
	options, err := s.handler.ShimOptions("", true) // what it may have was decided when the handler was opened
	if err == nil {
		s.answer, err = taskshim.Ask(context.Background(), path, options)
	}
	if err != nil {
		s.log.Info("the shim does not say what its runtime can: user namespaces and recursive read-only mounts are not offered", logfields.Handler, s.name, logfields.Error, err)
	}
	s.asked = path
	return s.answer
}

func (s *shimAbilities) recursiveReadOnly() error {
	if !s.get().RecursiveReadOnly {
		return fmt.Errorf("handler %s: its runtime does not make mounts read-only recursively; leave recursiveReadOnly out, or use another RuntimeClass: %w", s.name, errdefs.ErrFailedPrecondition)
	}
	return hostpod.CheckRecursiveReadOnly()
}
