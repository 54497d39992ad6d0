package image

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// pin tells which names are those of a pinned image. The zero value pins nothing.
type pin struct {
	text string
	// prefix: it need only begin the name; part: it need only be somewhere in it.
	prefix, part bool
}

// parsePin reads a name, or a pattern: with * at its end, or at both ends. Patterns are compared with whole names, as
// docker.io/library/busybox:latest.
func parsePin(s string) (pin, error) {
	text, prefix := strings.CutSuffix(s, "*")
	text, part := strings.CutPrefix(text, "*")
	switch {
	case strings.Contains(text, "*"), part && !prefix:
		return pin{}, fmt.Errorf("pinned image %q: * can only be at the end, or at both ends: %w", s, errdefs.ErrInvalidArgument)
	case prefix:
		return pin{text: text, prefix: !part, part: part}, nil
	}
	full, err := Normalize(s)
	if err != nil {
		return pin{}, fmt.Errorf("pinned image: %w", err)
	}
	return pin{text: full}, nil
}

func (p pin) matches(name string) bool {
	switch {
	case p.part:
		return strings.Contains(name, p.text)
	case p.prefix:
		return strings.HasPrefix(name, p.text)
	}
	return name == p.text
}

// isPinned tells whether an image of this name is.
func (s *Service) isPinned(name string) bool {
	for _, p := range s.pinned {
		if p.matches(name) {
			return true
		}
	}
	return false
}
