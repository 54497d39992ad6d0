package monitor

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
)

// Error is an error that crosses the wire: its text, and its class by name.
type Error struct {
	Class   string `json:"class"`
	Message string `json:"message"`
}

// Error is the text.
func (e *Error) Error() string { return e.Message }

// Unwrap gives the error its class; one that is not known here is Unknown.
func (e *Error) Unwrap() error {
	for _, c := range classes() {
		if c.name == e.Class {
			return c.err
		}
	}
	return errdefs.ErrUnknown
}

// NewError makes of err what crosses the wire; nil for nil. An error without a class is Internal.
func NewError(err error) *Error {
	if err == nil {
		return nil
	}
	for _, c := range classes() {
		if errors.Is(err, c.err) {
			return &Error{Class: c.name, Message: err.Error()}
		}
	}
	return &Error{Class: "Internal", Message: err.Error()}
}

type class struct {
	name string
	err  error
}

func classes() []class {
	return []class{
		{"InvalidArgument", errdefs.ErrInvalidArgument},
		{"NotFound", errdefs.ErrNotFound},
		{"AlreadyExists", errdefs.ErrAlreadyExists},
		{"PermissionDenied", errdefs.ErrPermissionDenied},
		{"ResourceExhausted", errdefs.ErrResourceExhausted},
		{"FailedPrecondition", errdefs.ErrFailedPrecondition},
		{"Aborted", errdefs.ErrAborted},
		{"OutOfRange", errdefs.ErrOutOfRange},
		{"NotImplemented", errdefs.ErrNotImplemented},
		{"Unavailable", errdefs.ErrUnavailable},
		{"DataLoss", errdefs.ErrDataLoss},
		{"Internal", errdefs.ErrInternal},
		{"DeadlineExceeded", context.DeadlineExceeded},
		{"Canceled", context.Canceled},
	}
}
