package agent

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pistis-run/pistis/internal/logfields"
	stepsrpc "github.com/pistis-run/pistis/internal/steps/rpc"
)

// codeOf is how an error travels. One without a class is the agent's own failure.
func codeOf(err error) codes.Code {
	switch errdefs.Resolve(err) {
	case nil:
		return codes.OK
	case errdefs.ErrInvalidArgument:
		return codes.InvalidArgument
	case errdefs.ErrNotFound:
		return codes.NotFound
	case errdefs.ErrAlreadyExists:
		return codes.AlreadyExists
	case errdefs.ErrPermissionDenied:
		return codes.PermissionDenied
	case errdefs.ErrResourceExhausted:
		return codes.ResourceExhausted
	case errdefs.ErrFailedPrecondition:
		return codes.FailedPrecondition
	case errdefs.ErrNotImplemented:
		return codes.Unimplemented
	case errdefs.ErrUnavailable:
		return codes.Unavailable
	case context.DeadlineExceeded:
		return codes.DeadlineExceeded
	case context.Canceled:
		return codes.Canceled
	}
	return codes.Internal
}

// interceptor converts errors on their way out and logs calls for those who look for a problem.
func interceptor(log *slog.Logger) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		return stepsrpc.Serve(ctx, unmarshal, func(ctx context.Context, unmarshal func(any) error) (any, error) {
			start := time.Now()
			reply, err := method(ctx, unmarshal)
			log.Debug("call", logfields.Method, info.FullMethod, logfields.Duration, time.Since(start), logfields.Error, err)
			if err != nil {
				return nil, status.Error(codeOf(err), err.Error())
			}
			return reply, nil
		})
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

func precondition(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrFailedPrecondition)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrNotImplemented)...)
}
