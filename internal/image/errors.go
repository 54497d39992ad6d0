package image

import (
	"context"
	"errors"
	"fmt"
	"io"
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
var errStalled = errors.New("no progress")

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

func isNetwork(err error) bool {
	var netErr net.Error
	var urlErr *url.Error
	return errors.As(err, &netErr) || errors.As(err, &urlErr) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EPIPE)
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
