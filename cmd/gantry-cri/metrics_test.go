package main

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// TestServeMetrics: they are served where the configuration says, and only they; an
// address that somebody else has is an error in the log.
func TestServeMetrics(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	log := slog.New(slog.NewTextHandler(&buf, nil))
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "gantry_ready 1\n") })
	serveMetrics("", h, log)()
	if buf.Len() > 0 {
		t.Errorf("metrics that nobody asked for: %s", buf.String())
	}

	stop := serveMetrics("127.0.0.1:0", h, log)
	defer stop()
	at := regexp.MustCompile(`address=(127\.0\.0\.1:\d+)`).FindStringSubmatch(buf.String())
	if at == nil {
		t.Fatalf("the log does not say where: %s", buf.String())
	}
	for path, code := range map[string]int{"/metrics": 200, "/": 404} {
		resp, err := http.Get("http://" + at[1] + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != code {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}

	buf.Reset()
	serveMetrics(at[1], h, log)()
	if !strings.Contains(buf.String(), "there are no metrics") {
		t.Errorf("an address that is taken: %s", buf.String())
	}
	stop()
	if c, err := net.Dial("tcp", at[1]); err == nil {
		_ = c.Close()
		t.Error("still served after the end")
	}
}
