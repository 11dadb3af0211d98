package main

import (
	"context"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// flushTime bounds how long the end waits for spans that are not sent yet.
const flushTime = 2 * time.Second

// tracing sends spans to a collector of OpenTelemetry, without waiting for it: a
// collector that is not there costs the spans and nothing else. Without an address
// there is none. Of a million requests that are part of no trace, some are traced; what
// kubelet traces always is. The returned function sends what is left.
func tracing(ctx context.Context, address string, perMillion int64, log *slog.Logger) (trace.TracerProvider, func()) {
	if address == "" {
		return nil, func() {}
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpoint(address), otlptracegrpc.WithInsecure())
	if err != nil { // no reason to leave the node without an engine
		log.Error("there are no traces", "address", address, "err", err)
		return nil, func() {}
	}
	p := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(float64(perMillion)/1e6))),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "gantry-cri"), attribute.String("service.version", version))),
	)
	log.Info("sending traces", "address", address, "perMillion", perMillion)
	return p, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTime)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			log.Warn("some traces were not sent", "err", err)
		}
	}
}
