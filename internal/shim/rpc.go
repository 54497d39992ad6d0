package shim

import (
	"context"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	sandboxv1 "github.com/pistis-run/pistis/api/sandbox/v1"
	shimv1 "github.com/pistis-run/pistis/api/shim/v1"
	stepsrpc "github.com/pistis-run/pistis/internal/steps/rpc"
)

// taskServices are the names under which containerd asks for tasks. The messages of both versions are the same on
// the wire; those of version 2 are used because their Go package brings no gRPC.
func taskServices() []string {
	return []string{"containerd.task.v3.Task", "containerd.task.v2.Task"}
}

// message is a pointer to a generated message.
type message[T any] interface{ *T }

// unary makes a ttrpc method of a function.
func unary[Q any, P message[Q], R any](f func(context.Context, P) (R, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var req Q
		if err := unmarshal(&req); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		return f(ctx, &req)
	}
}

// empty makes a ttrpc method of a function without an answer.
func empty[Q any, P message[Q]](f func(context.Context, P) error) ttrpc.Method {
	return unary(func(ctx context.Context, req P) (*emptypb.Empty, error) {
		return &emptypb.Empty{}, f(ctx, req)
	})
}

// Register adds the shim's services to a server made with NewServer.
func (s *Service) Register(server *ttrpc.Server) {
	server.Register(sandboxv1.Service, map[string]ttrpc.Method{
		"CreateSandbox":   unary(s.CreateSandbox),
		"StartSandbox":    unary(s.StartSandbox),
		"Platform":        unary(s.Platform),
		"StopSandbox":     unary(s.StopSandbox),
		"WaitSandbox":     unary(s.WaitSandbox),
		"SandboxStatus":   unary(s.SandboxStatus),
		"PingSandbox":     unary(s.PingSandbox),
		"ShutdownSandbox": unary(s.ShutdownSandbox),
	})
	for _, name := range taskServices() {
		server.Register(name, map[string]ttrpc.Method{
			"State":      unary(s.State),
			"Create":     unary(s.Create),
			"Start":      unary(s.Start),
			"Delete":     unary(s.Delete),
			"Pids":       unary(s.Pids),
			"Pause":      empty(s.Pause),
			"Resume":     empty(s.Resume),
			"Checkpoint": empty(s.Checkpoint),
			"Kill":       empty(s.Kill),
			"Exec":       empty(s.Exec),
			"ResizePty":  empty(s.ResizePty),
			"CloseIO":    empty(s.CloseIO),
			"Update":     empty(s.Update),
			"Wait":       unary(s.Wait),
			"Stats":      unary(s.TaskStats),
			"Connect":    unary(s.Connect),
			"Shutdown":   empty(s.Shutdown),
		})
	}
	shimv1.RegisterShimService(server, extras{s})
}

// NewServer returns a ttrpc server that answers errors with their gRPC code and never with Unknown.
func NewServer() (*ttrpc.Server, error) {
	return ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
			return stepsrpc.Serve(ctx, u, func(ctx context.Context, u func(any) error) (any, error) {
				answer, err := m(ctx, u)
				return answer, wireError(err)
			})
		}))
}

func wireError(err error) error {
	if err == nil {
		return nil
	}
	wire := errgrpc.ToGRPC(err)
	if status.Code(wire) == codes.Unknown {
		return status.Error(codes.Internal, err.Error())
	}
	return wire
}
