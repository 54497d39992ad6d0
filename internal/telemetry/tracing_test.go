package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/pistis-run/pistis/internal/span"
	"github.com/pistis-run/pistis/internal/steps"
	"github.com/pistis-run/pistis/test/collector"
)

// service answers with work that has parts.
type service struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (service) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	ctx, end := span.Start(ctx, "work", span.Sandbox.String("s1"))
	inner, endInner := span.Start(ctx, "part")
	span.Set(inner, span.PID.Int(1))
	endInner(errors.New("did not go well"))
	recording, endCall := span.Call(ctx, "call")
	step, endStep := steps.Start(recording, "step")
	_, endInStep := steps.Start(step, "in it")
	endInStep()
	endStep()
	endCall(nil)
	end(nil)
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// call serves with the options and makes one call.
func call(t *testing.T, options []grpc.ServerOption) {
	t.Helper()
	server := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(server, service{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	server.GracefulStop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestTracing(t *testing.T) {
	c, err := collector.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	log := slog.New(slog.DiscardHandler)
	for _, tt := range []struct {
		name    string
		options TracingOptions
		want    []string
	}{
		{"off", TracingOptions{}, nil},
		{"none sampled", TracingOptions{Endpoint: c.URL, Ratio: 0}, nil},
		{"all", TracingOptions{Endpoint: c.URL, Ratio: 1}, []string{
			"grpc.health.v1.Health/Check", "grpc.health.v1.Health/Check/work",
			"grpc.health.v1.Health/Check/work/call", "grpc.health.v1.Health/Check/work/call/step",
			"grpc.health.v1.Health/Check/work/call/step/in it", "grpc.health.v1.Health/Check/work/part",
		}},
	} {
		tt.options.Log = log
		options, stop, err := Tracing(t.Context(), tt.options)
		if err != nil {
			t.Fatal(err)
		}
		call(t, options)
		if err := stop(t.Context()); err != nil {
			t.Error(err)
		}
		if got := c.Paths(); !slices.Equal(got, tt.want) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
