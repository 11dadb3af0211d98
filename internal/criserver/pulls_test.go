package criserver

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/image"
)

// TestPullsAreSeen: while an image comes its pull is counted and listed, and two requests
// for it are one download.
func TestPullsAreSeen(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	metrics := func() string {
		w := httptest.NewRecorder()
		b.server.Metrics().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		return w.Body.String()
	}
	want := func(when string, lines ...string) {
		t.Helper()
		text := metrics()
		for _, line := range lines {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("%s: there is no %s", when, line)
			}
		}
	}
	second := false
	b.images.pull = func(ref string, o image.PullOptions) (*image.Image, error) {
		o.Progress(image.Progress{Stage: image.StageLayer, Layer: 1, Layers: 2, Bytes: 100, Total: 400})
		o.Progress(image.Progress{Stage: image.StageLayer, Layer: 1, Layers: 2, Bytes: 300, Total: 400})
		o.Progress(image.Progress{Stage: image.StageLayer, Layer: 2, Layers: 2, Bytes: 50, Total: 50, Here: true})
		if !second {
			second = true
			if _, err := b.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "web"}}); err == nil {
				t.Error("the second pull did not fail")
			}
			want("during the pull", "gantry_pulls_in_flight 1", "gantry_pull_bytes_total 300")
			s, err := b.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
			if err != nil || !strings.Contains(s.Info["gantry"], `"pulls":[{"image":"web","stage":"layer","layers":2,"bytes":350,"total":450,"took":"0s"}]`) {
				t.Errorf("the status has %v, %v", s.GetInfo(), err)
			}
		}
		return nil, errors.New("no")
	}
	if _, err := b.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "web"}}); err == nil {
		t.Error("the pull did not fail")
	}
	want("after the pull", "gantry_pulls_in_flight 0", "gantry_pull_bytes_total 300")
}

func TestLongPullsAreInTheLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := pulls{log: slog.New(slog.NewTextHandler(&log, nil))}
		one := p.begin("web")
		defer one.end()
		for i := range int64(70) {
			<-time.After(time.Second)
			one.progress(image.Progress{Stage: image.StageLayer, Layer: 1, Layers: 1, Bytes: i, Total: 100})
		}
		if got := strings.Count(log.String(), "still pulling image"); got != 2 || !strings.Contains(log.String(), "image=web stage=layer layers=1 bytes=59 of=100 took=1m0s") {
			t.Errorf("%d lines: %s", got, &log)
		}
	})
}
