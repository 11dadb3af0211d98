//go:build e2e

package node

import (
	"context"
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// spans is a collector of OpenTelemetry that keeps what it gets.
type spans struct {
	collector.UnimplementedTraceServiceServer
	got chan *otlp.Span
}

func (s *spans) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	for _, r := range req.ResourceSpans {
		for _, scope := range r.ScopeSpans {
			for _, span := range scope.Spans {
				s.got <- span
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// collect serves a collector until the end of the test, and gives its address.
func collect(t *testing.T) (s *spans, address string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = &spans{got: make(chan *otlp.Span, 1000)}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, l.Addr().String()
}

// TestTracesReachACollector: a kubelet's traces go on in gantry-cri, which says of each
// request what it was about and the step at which it failed.
func TestTracesReachACollector(t *testing.T) {
	guard(t)
	needsGantry(t)
	s, address := collect(t)
	withConfig(t, "[cri]\ntracing-address = \""+address+"\"\ntracing-per-million = 0\n")
	e := dial(t)
	p := e.run(t, onHost(e.podConfig(t, "traced"))) // of no trace
	config := containerConfig("missing", "")
	config.Command = []string{"/no/such/program"}
	config.Envs = []*cri.KeyValue{{Key: "PASSWORD", Value: []byte("top secret")}}
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
	created, err := e.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err == nil {
		t.Fatal("a program that is not there was started")
	}
	texts := map[string]string{}
	for range 2 {
		select {
		case span := <-s.got:
			texts[span.Name] = span.String()
			if got := string(span.TraceId); got != unhex(t, trace) {
				t.Errorf("trace %x: %v", got, span)
			}
		case <-time.After(patience(30 * time.Second)):
			t.Fatalf("the collector has %v", texts)
		}
	}
	for name, wants := range map[string][]string{
		"runtime.v1.RuntimeService/CreateContainer": {"gantry.pod", p.id},
		"runtime.v1.RuntimeService/StartContainer":  {created.ContainerId, "gantry.stage", "STATUS_CODE_ERROR"},
	} {
		for _, want := range wants {
			if !strings.Contains(texts[name], want) {
				t.Errorf("%s has no %s: %s", name, want, texts[name])
			}
		}
		if strings.Contains(texts[name], "secret") {
			t.Errorf("%s tells a secret: %s", name, texts[name])
		}
	}
	if n := len(s.got); n != 0 {
		t.Errorf("%d spans more, one of them %v", n, <-s.got)
	}
}

func unhex(t *testing.T, s string) string {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
