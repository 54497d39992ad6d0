// Package span marks parts of the work for traces.
//
// A trace begins where a call comes in, and goes on with the context. So nothing here is set up or global: outside of a
// trace all of it does nothing. The package imports only OpenTelemetry's API, and the steps of those who send no traces.
package span

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/pistis-run/pistis/internal/steps"
)

// scope is what spans say that they are made by.
const scope = "github.com/pistis-run/pistis"

// Attributes of spans.
const (
	Sandbox   = attribute.Key("pistis.sandbox")
	Container = attribute.Key("pistis.container")
	Handler   = attribute.Key("pistis.handler")
	Image     = attribute.Key("pistis.image")
	PID       = attribute.Key("process.pid")
)

// Start begins a span in the trace that ctx is in. end is called once, with the error that the work ended with.
func Start(ctx context.Context, name string, attributes ...attribute.KeyValue) (_ context.Context, end func(error)) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, func(error) {}
	}
	ctx, s := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithAttributes(attributes...))
	return ctx, func(err error) {
		if err != nil {
			s.SetStatus(codes.Error, err.Error())
		}
		s.End()
	}
}

// Call is Start for a call to somebody who sends no traces, but tells of steps: those that are recorded in the context become
// spans below it.
func Call(ctx context.Context, name string, attributes ...attribute.KeyValue) (_ context.Context, end func(error)) {
	ctx, finish := Start(ctx, name, attributes...)
	if !trace.SpanFromContext(ctx).IsRecording() {
		return ctx, finish
	}
	began := time.Now()
	recording := steps.Record(ctx)
	return recording, func(err error) {
		var past []context.Context
		for _, s := range steps.Recorded(recording).Steps {
			in := ctx
			if s.In >= 0 {
				in = past[s.In]
			}
			past = append(past, add(in, s.Name, began.Add(s.Start), began.Add(s.End)))
		}
		finish(err)
	}
}

// add adds a span of what has ended.
func add(ctx context.Context, name string, start, end time.Time) context.Context {
	parent := trace.SpanFromContext(ctx)
	ctx, s := parent.TracerProvider().Tracer(scope).Start(ctx, name, trace.WithTimestamp(start))
	s.End(trace.WithTimestamp(end))
	return ctx
}

// Set adds attributes that are known only now to the span that ctx is in.
func Set(ctx context.Context, attributes ...attribute.KeyValue) {
	trace.SpanFromContext(ctx).SetAttributes(attributes...)
}
