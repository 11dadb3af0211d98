package main

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// received is a collector that keeps the names of spans.
type received struct {
	collector.UnimplementedTraceServiceServer
	names chan string
}

func (r *received) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				r.names <- rs.Resource.Attributes[0].Value.GetStringValue() + ": " + s.Name
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// TestTracing: what is sampled reaches the collector at the end at the latest, and what
// is not does not.
func TestTracing(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &received{names: make(chan string, 10)}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, got)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	for _, rate := range []int64{0, 1_000_000} {
		p, flush := tracing(t.Context(), l.Addr().String(), rate, slog.New(slog.DiscardHandler))
		_, span := p.Tracer("test").Start(t.Context(), "request")
		span.End()
		flush()
	}
	close(got.names)
	var names []string
	for n := range got.names {
		names = append(names, n)
	}
	if len(names) != 1 || names[0] != "gantry-cri: request" {
		t.Errorf("the collector has %q", names)
	}
}

// TestTracingWithoutCollector: nobody listens, and nothing waits for it.
func TestTracingWithoutCollector(t *testing.T) {
	t.Parallel()
	none, flush := tracing(t.Context(), "", 1, slog.New(slog.DiscardHandler))
	if flush(); none != nil {
		t.Errorf("no address: %v", none)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	var log bytes.Buffer
	p, flush := tracing(t.Context(), l.Addr().String(), 1_000_000, slog.New(slog.NewTextHandler(&log, nil)))
	_, span := p.Tracer("test").Start(t.Context(), "request")
	span.End()
	flush()
	if !bytes.Contains(log.Bytes(), []byte("some traces were not sent")) {
		t.Errorf("the log says %s", log.String())
	}
}
