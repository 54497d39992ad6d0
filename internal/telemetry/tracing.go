package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"

	"github.com/pistis-run/pistis/internal/logfields"
)

// flushTimeout is how long the last traces may take to be sent.
const flushTimeout = 3 * time.Second

// TracingOptions say where traces go.
type TracingOptions struct {
	// Endpoint is the URL of a collector that takes OTLP over gRPC, as http://127.0.0.1:4317. Empty: no traces.
	Endpoint string
	// Ratio of the calls that are traced which come without a trace of the client's; one that has decided is followed.
	Ratio float64
	// Version of the daemon.
	Version string
	Log     *slog.Logger
}

// Tracing makes the calls of a gRPC server into traces. It returns the server's options, none without an endpoint, and
// what sends the last traces and ends. A collector that is not there is tried again, and disturbs nothing.
func Tracing(ctx context.Context, o TracingOptions) (options []grpc.ServerOption, stop func(context.Context) error, err error) {
	if o.Endpoint == "" {
		return nil, func(context.Context) error { return nil }, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(o.Endpoint))
	if err != nil {
		return nil, nil, fmt.Errorf("traces to %s: %w", o.Endpoint, err)
	}
	provider := trace.NewTracerProvider(
		trace.WithBatcher(exporter),
		trace.WithSampler(trace.ParentBased(trace.TraceIDRatioBased(o.Ratio))),
		trace.WithResource(resource.NewSchemaless(attribute.String("service.name", "pistisd"), attribute.String("service.version", o.Version))),
	)
	handler := otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(provider), otelgrpc.WithPropagators(propagation.TraceContext{}))
	stop = func(ctx context.Context) error {
		// The collector may have gone before us; its absence is nobody's failure, and nobody waits for it.
		ctx, cancel := context.WithTimeout(ctx, flushTimeout)
		defer cancel()
		if err := provider.Shutdown(ctx); err != nil {
			o.Log.WarnContext(ctx, "the last traces were not sent", logfields.Error, err)
		}
		return nil
	}
	o.Log.Info("sending traces", logfields.Address, o.Endpoint)
	return []grpc.ServerOption{grpc.StatsHandler(handler)}, stop, nil
}
