package criserver

import (
	"context"
	"errors"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"gantry/internal/engine"
)

// traced makes a span of each request, as part of the client's trace if it has one.
func traced(p trace.TracerProvider) []grpc.ServerOption {
	if p == nil {
		return nil
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(
		otelgrpc.WithTracerProvider(p), otelgrpc.WithPropagators(propagation.TraceContext{}),
	))}
}

// mark says on a request's span what it was about, and where it failed. Nothing else of
// a request is told: it may hold secrets.
func mark(ctx context.Context, req any, err error) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	for _, a := range subject(req) {
		span.SetAttributes(attribute.String("gantry."+a.Key, a.Value.String()))
	}
	var at *engine.StageError
	if errors.As(err, &at) {
		span.SetAttributes(attribute.String("gantry.stage", at.Stage))
	}
}
