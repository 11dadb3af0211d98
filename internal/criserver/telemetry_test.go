package criserver

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

func TestServerMetrics(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.start(t, b.run(t, "a"), nil)
	if _, err := b.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "zz"}); err == nil {
		t.Fatal("a container that is not there has a status")
	}
	read := func() string {
		t.Helper()
		w := httptest.NewRecorder()
		b.server.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		if w.Code != 200 {
			t.Fatalf("%d: %s", w.Code, w.Body)
		}
		return w.Body.String()
	}
	text := read()
	for _, want := range []string{
		`gantry_cri_request_duration_seconds_count{code="OK",method="RunPodSandbox"} 1`,
		`gantry_cri_request_duration_seconds_count{code="NotFound",method="ContainerStatus"} 1`,
		"gantry_cri_requests_in_flight 0", "gantry_ready 1", `gantry_build_info{version="1.2.3"} 1`,
		`gantry_pods{state="ready"} 1`, `gantry_containers{state="running"} 1`, `gantry_containers{state="exited"} 0`, "go_goroutines",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s", want)
		}
	}
	b.engine.SetReady(fmt.Errorf("loading: %w", pod.ErrUnavailable))
	if text := read(); !strings.Contains(text, "gantry_ready 0") || strings.Contains(text, "gantry_pods") {
		t.Errorf("while the state is not known: %s", text)
	}
}
