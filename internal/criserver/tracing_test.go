package criserver

import (
	"fmt"
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestTraces: a request is a span of its client's trace, says what it is about and how
// it ended, and has nothing of what it brought.
func TestTraces(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	b := newTracedBench(t, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	const parent = "4bf92f3577b34da6a3ce929d0e0e4736"
	ctx := metadata.AppendToOutgoingContext(t.Context(), "traceparent", "00-"+parent+"-00f067aa0ba902b7-01")
	sandbox := b.run(t, "a")
	if _, err := b.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Fatal(err)
	}
	_, err := b.image.PullImage(ctx, &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "none:1"}, Auth: &runtimeapi.AuthConfig{Username: "u", Password: "top secret"},
	})
	// A span ends a moment after its answer.
	for end := time.Now().Add(10 * time.Second); len(spans.Ended()) < 3 && time.Now().Before(end); {
		<-time.After(time.Millisecond)
	}
	var texts []string
	for _, s := range spans.Ended() {
		text := s.Name() + " " + s.Status().Code.String() + " " + fmt.Sprint(s.Attributes())
		texts = append(texts, text)
		if strings.Contains(text, "RunPodSandbox") == (s.SpanContext().TraceID().String() == parent) {
			t.Errorf("trace %s: %s", s.SpanContext().TraceID(), text)
		}
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{"runtime.v1.RuntimeService/RunPodSandbox", "runtime.v1.RuntimeService/StopPodSandbox", "gantry.pod", sandbox, "runtime.v1.ImageService/PullImage", "none:1"} {
		if !strings.Contains(all, want) {
			t.Errorf("no span has %s:\n%s", want, all)
		}
	}
	if strings.Contains(all, "secret") {
		t.Errorf("a span has a password:\n%s", all)
	}
	if err != nil && !strings.Contains(all, "Error") {
		t.Errorf("no span failed:\n%s", all)
	}
}
