package daemon

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pistis-run/pistis/internal/telemetry"
)

// observeCalls counts calls, by the handler of the pod that they are about.
func observeCalls(counts *telemetry.Metrics, handlerOf func(req any) string) func(method string, req any) func(codes.Code, time.Duration) {
	return func(method string, req any) func(codes.Code, time.Duration) {
		handler := handlerOf(req) // now: the pod may have gone afterwards
		return func(code codes.Code, d time.Duration) { counts.Call(method, handler, code, d) }
	}
}

// observePull counts a pull by how it ended.
func observePull(counts *telemetry.Metrics) func(bytes int64, d time.Duration, err error) {
	return func(bytes int64, d time.Duration, err error) {
		result := "ok"
		switch {
		case err == nil:
		case errdefs.IsCanceled(err):
			result = codes.Canceled.String()
		default:
			result = status.Code(errgrpc.ToGRPC(err)).String()
		}
		counts.Pull(result, bytes, d)
	}
}

// census counts what there is.
func (e *engine) census() (pods, containers map[telemetry.State]int) {
	ctx := context.Background()
	pods, containers = map[telemetry.State]int{}, map[telemetry.State]int{}
	handlers := map[string]string{}
	for _, s := range e.sandboxes.List(ctx) {
		handlers[s.ID] = s.Config.Handler
		pods[telemetry.State{Handler: s.Config.Handler, State: string(s.State)}]++
	}
	for _, c := range e.containers.List(ctx) {
		containers[telemetry.State{Handler: handlers[c.Config.SandboxID], State: string(c.State)}]++
	}
	return pods, containers
}
