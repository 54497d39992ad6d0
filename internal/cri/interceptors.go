package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/pistis-run/pistis/internal/logfields"
)

// MaxMessageSize bounds messages both ways, in bytes. It is what the kubelet's client takes.
const MaxMessageSize = 16 << 20

// Interceptors are the options of a gRPC server whose handlers return errdefs classes: errors become gRPC codes,
// panics become Internal, every call is logged, and observed where observe is not nil: it is called when a call begins, with
// the request where there is one, and what it returns when the call has ended.
func Interceptors(log *slog.Logger, observe func(method string, req any) func(codes.Code, time.Duration)) []grpc.ServerOption {
	begin := func(ctx context.Context, method string, req any) (done func(error)) {
		start := time.Now()
		observed := func(codes.Code, time.Duration) {}
		if observe != nil {
			observed = observe(path.Base(method), req)
		}
		return func(err error) {
			duration := time.Since(start)
			logCall(ctx, log, path.Base(method), req, duration, err)
			observed(status.Code(err), duration)
		}
	}
	unary := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		done := begin(ctx, info.FullMethod, req)
		defer func() { done(err) }()
		defer func() { err = toStatus(ctx, err) }()
		defer recovered(ctx, log, info.FullMethod, &err)
		return handler(ctx, req)
	}
	stream := func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
		ctx := ss.Context()
		done := begin(ctx, info.FullMethod, nil)
		defer func() { done(err) }()
		defer func() { err = toStatus(ctx, err) }()
		defer recovered(ctx, log, info.FullMethod, &err)
		return handler(srv, ss)
	}
	return []grpc.ServerOption{
		grpc.UnaryInterceptor(unary), grpc.StreamInterceptor(stream),
		grpc.MaxRecvMsgSize(MaxMessageSize), grpc.MaxSendMsgSize(MaxMessageSize),
	}
}

// recovered turns a panic of one call into its error; the others go on.
func recovered(ctx context.Context, log *slog.Logger, method string, err *error) {
	if p := recover(); p != nil {
		log.ErrorContext(ctx, "call panicked", logfields.Method, path.Base(method), logfields.Error, fmt.Sprint(p), logfields.Stack, string(debug.Stack()))
		*err = fmt.Errorf("%s: internal error: %v: %w", path.Base(method), p, errdefs.ErrInternal)
	}
}

// toStatus gives an error its gRPC code. What has no class is Internal. Only CRI's own errors of pulls leave as
// Unknown: the kubelet knows them by the beginning of the text, and its client takes the code off that text for Unknown alone.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, crierrors.ErrRegistryUnavailable) || errors.Is(err, crierrors.ErrSignatureValidationFailed) {
		return status.Error(codes.Unknown, err.Error())
	}
	if s, ok := status.FromError(err); ok && s.Code() != codes.Unknown {
		return err
	}
	converted := errgrpc.ToGRPC(err)
	if s, ok := status.FromError(converted); ok && s.Code() != codes.Unknown {
		return converted
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(ctx.Err(), context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(ctx.Err(), context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return status.Error(codes.ResourceExhausted, err.Error()+"; make room there, for example by removing images")
	}
	return status.Error(codes.Internal, err.Error())
}

// logCall writes one line for a call. Those that only look are asked every second and are of interest to nobody.
func logCall(ctx context.Context, log *slog.Logger, method string, req any, d time.Duration, err error) {
	level := slog.LevelInfo
	if onlyLooks(method) {
		level = slog.LevelDebug
	}
	switch status.Code(err) {
	case codes.OK:
	case codes.NotFound, codes.Canceled, codes.Unimplemented:
	case codes.Internal, codes.DataLoss:
		level = slog.LevelError
	default:
		level = slog.LevelWarn
	}
	if !log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String(logfields.Method, method), slog.Duration(logfields.Duration, d), slog.String(logfields.Code, status.Code(err).String())}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok && r.GetPodSandboxId() != "" {
		attrs = append(attrs, slog.String(logfields.Sandbox, r.GetPodSandboxId()))
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok && r.GetContainerId() != "" {
		attrs = append(attrs, slog.String(logfields.Container, r.GetContainerId()))
	}
	if err != nil {
		attrs = append(attrs, slog.String(logfields.Error, status.Convert(err).Message()))
	}
	log.LogAttrs(ctx, level, "call", attrs...)
}

// onlyLooks: the call changes nothing, or is a probe.
func onlyLooks(method string) bool {
	switch method {
	case "Version", "Status", "RuntimeConfig", "ExecSync", "GetContainerEvents", "ImageFsInfo", "ImageStatus",
		"PodSandboxStatus", "ContainerStatus", "PodSandboxStats", "ContainerStats":
		return true
	}
	return strings.HasPrefix(method, "List") || strings.HasPrefix(method, "Stream")
}
