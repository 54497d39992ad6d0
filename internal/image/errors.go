package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remote "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// maxMessage bounds the text of an error in bytes.
const maxMessage = 1 << 10

// errStalled ends a pull that makes no progress.
var errStalled = reclass(errors.New("no progress"), context.DeadlineExceeded)

// classify gives err the class that its cause has, so that nothing leaves without one.
func classify(err error) error {
	var status remote.ErrUnexpectedStatus
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("the image file system is full, remove images or enlarge it: %w", reclass(err, errdefs.ErrResourceExhausted))
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("the registry refused the credentials, check the pull secret: %w", reclass(err, errdefs.ErrUnauthenticated))
	case errors.As(err, &status):
		return classifyStatus(err, status.StatusCode)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case known(err):
		return err
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("the registry speaks plain HTTP, list it as insecure or in hosts.toml: %w", reclass(err, errdefs.ErrFailedPrecondition))
	case isNetwork(err):
		return reclass(err, errdefs.ErrUnavailable)
	default:
		return reclass(err, errdefs.ErrInternal)
	}
}

func classifyStatus(err error, code int) error {
	switch {
	case code == http.StatusUnauthorized:
		return fmt.Errorf("the registry refused the credentials, check the pull secret: %w", reclass(err, errdefs.ErrUnauthenticated))
	case code == http.StatusForbidden:
		return fmt.Errorf("the registry denies access, check the pull secret: %w", reclass(err, errdefs.ErrPermissionDenied))
	case code == http.StatusNotFound:
		return reclass(err, errdefs.ErrNotFound)
	case code == http.StatusTooManyRequests:
		return fmt.Errorf("the registry limits the rate of pulls, try later: %w", reclass(err, errdefs.ErrUnavailable))
	case code >= 500:
		return reclass(err, errdefs.ErrUnavailable)
	default:
		return reclass(err, errdefs.ErrFailedPrecondition)
	}
}

// known reports whether err has a class already.
func known(err error) bool { return !errors.Is(errdefs.Resolve(err), errdefs.ErrUnknown) }

// isNetwork looks for the types that the network's errors have. It does not ask for net.Error: each errno is one.
func isNetwork(err error) bool {
	var op *net.OpError
	var dns *net.DNSError
	var request *url.Error
	var body *bodyError
	return errors.As(err, &op) || errors.As(err, &dns) || errors.As(err, &request) || errors.As(err, &body)
}

// bodyError is what reading a registry's answer ended with.
type bodyError struct{ err error }

func (b *bodyError) Error() string { return b.err.Error() }
func (b *bodyError) Unwrap() error { return b.err }

// transient tells the failures after which asking the registry again makes sense. Answers were repeated already
// where their status allows it.
func transient(err error) bool {
	var status remote.ErrUnexpectedStatus
	return isNetwork(err) && !known(err) && !errors.As(err, &status) && !errors.Is(err, docker.ErrInvalidAuthorization)
}

// noRange is the answer of a registry that cannot send the rest of a blob alone.
func noRange(err error) bool {
	var status remote.ErrUnexpectedStatus
	return errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// reclass hides the classes of err behind another one; errors.Is and As still find causes that are no classes.
func reclass(err, class error) error { return &classed{err: err, class: class} }

type classed struct{ err, class error }

// Error is the cause's text on one line and bounded: a part of it may come from a registry.
func (c *classed) Error() string {
	text := strings.Map(func(r rune) rune {
		switch {
		case r == '\n':
			return ';'
		case unicode.IsControl(r):
			return -1
		}
		return r
	}, c.err.Error())
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return text
}
func (c *classed) Unwrap() error { return c.class }
func (c *classed) Is(target error) bool {
	return errors.Is(target, syscall.ENOSPC) && errors.Is(c.err, target)
}

// corrupt marks content that is not what its digest says.
func corrupt(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrDataLoss)...)
}

// refuse marks an image that this node cannot run.
func refuse(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}
