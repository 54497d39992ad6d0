package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pistis-run/pistis/internal/logfields"
	"github.com/pistis-run/pistis/internal/sandbox"
	"github.com/pistis-run/pistis/internal/telemetry"
)

// countersTimeout is how long VMMs get to say what they count, all at once. One that hangs takes it once.
const countersTimeout = 2 * time.Second

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

// counters asks all VMMs what they count. One that does not answer in time is left out.
func (e *engine) counters(log *slog.Logger) []telemetry.Counter {
	ctx, cancel := context.WithTimeout(context.Background(), countersTimeout)
	defer cancel()
	var asked sync.WaitGroup
	var mu sync.Mutex
	var all []telemetry.Counter
	for _, s := range e.sandboxes.List(ctx) {
		if s.State != sandbox.Ready || !s.VM {
			continue
		}
		asked.Go(func() {
			counters, err := e.sandboxes.Counters(ctx, s.ID)
			if err != nil {
				log.Debug("counters of a VMM are missing", logfields.Sandbox, s.ID, logfields.Error, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for _, c := range counters {
				all = append(all, telemetry.Counter{
					Handler: s.Config.Handler, Sandbox: s.ID, Kind: c.Kind, Part: c.Part, Direction: c.Direction, Value: c.Value,
				})
			}
		})
	}
	asked.Wait()
	return all
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
