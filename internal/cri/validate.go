package cri

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// maxID bounds ids, and names that stand for them.
const maxID = 253

func hasNUL(s string) bool   { return strings.ContainsRune(s, 0) }
func hasSpace(s string) bool { return strings.ContainsAny(s, " \t\r\n\v\f\x00") }

func requireID(kind, id string) error {
	switch {
	case id == "":
		return fmt.Errorf("the request has no %s id: %w", kind, errdefs.ErrInvalidArgument)
	case len(id) > maxID || strings.ContainsAny(id, "/\x00\n"):
		return fmt.Errorf("%q is not a %s id: %w", id[:min(len(id), maxID)], kind, errdefs.ErrInvalidArgument)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
