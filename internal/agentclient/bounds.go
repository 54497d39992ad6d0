package agentclient

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Bounds of what an agent may answer. ttrpc itself bounds a message to 4 MiB.
const (
	maxName       = 256
	maxText       = 4 << 10
	maxFeatures   = 64
	maxGroups     = 65536 // NGROUPS_MAX
	maxDisks      = 1024
	maxContainers = 1024
	maxInterfaces = 64
	maxUptime     = 365 * 24 * time.Hour
)

// hostile reports an answer that no honest agent gives.
func hostile(what, format string, args ...any) error {
	return fmt.Errorf("guest: %s: the answer is out of bounds: %s: %w", what, fmt.Sprintf(format, args...), errdefs.ErrDataLoss)
}

// clean makes text of the guest fit for logs and terminals: bounded, valid, without control characters.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "")))
}

func cleanList(list []string, count, limit int) []string {
	var out []string
	for _, s := range list[:min(len(list), count)] {
		out = append(out, clean(s, limit))
	}
	return out
}

// guestFailure is the error of a call. A guest that refuses says why in its own words; of one that does not answer only
// what it was asked for is known.
func guestFailure(ctx context.Context, what string, err error) error {
	if _, refused := status.FromError(err); refused {
		return fmt.Errorf("guest: %w", native(err))
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.DeadlineExceeded) {
		err = cause
	}
	return fmt.Errorf("guest: %s: %w", what, native(err))
}

// native makes an error of the guest one of errdefs. Its text is the guest's and therefore cleaned; details that
// came with it are not decoded at all.
func native(err error) error {
	if errors.Is(err, ttrpc.ErrClosed) {
		return fmt.Errorf("the connection was lost: %w: %w", err, errdefs.ErrUnavailable)
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", clean(err.Error(), maxText), errdefs.ErrUnavailable)
	}
	return guestError(st.Message(), st.Code())
}

// guestError makes an error of what the guest said.
func guestError(text string, code codes.Code) error {
	class := classOf(code)
	// The class ends the message already where the other side wraps as we do.
	text = strings.TrimSuffix(strings.TrimSuffix(clean(text, maxText), class.Error()), ": ")
	if text == "" {
		return class
	}
	return fmt.Errorf("%s: %w", text, class)
}

func classOf(code codes.Code) error {
	switch code {
	case codes.InvalidArgument:
		return errdefs.ErrInvalidArgument
	case codes.NotFound:
		return errdefs.ErrNotFound
	case codes.AlreadyExists:
		return errdefs.ErrAlreadyExists
	case codes.PermissionDenied:
		return errdefs.ErrPermissionDenied
	case codes.ResourceExhausted:
		return errdefs.ErrResourceExhausted
	case codes.FailedPrecondition:
		return errdefs.ErrFailedPrecondition
	case codes.Aborted:
		return errdefs.ErrAborted
	case codes.OutOfRange:
		return errdefs.ErrOutOfRange
	case codes.Unimplemented:
		return errdefs.ErrNotImplemented
	case codes.Unavailable:
		return errdefs.ErrUnavailable
	case codes.DataLoss:
		return errdefs.ErrDataLoss
	case codes.DeadlineExceeded:
		return context.DeadlineExceeded
	case codes.Canceled:
		return context.Canceled
	}
	return errdefs.ErrInternal
}
