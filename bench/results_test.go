package main

import (
	"strings"
	"testing"
	"time"
)

func TestQuartiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		samples []float64
		want    quartiles
	}{
		{[]float64{7}, quartiles{7, 7, 7}},
		{[]float64{4, 1, 3, 2}, quartiles{1.75, 2.5, 3.25}},
		{[]float64{100, 1, 2, 3, 4}, quartiles{2, 3, 4}},
	} {
		if got := quartilesOf(c.samples); got != c.want {
			t.Errorf("%v: got %v, want %v", c.samples, got, c.want)
		}
	}
}

func TestVerdict(t *testing.T) {
	t.Parallel()
	m := metric{unit: "ms", goal: 0.5}
	for _, c := range []struct {
		m                  metric
		gantry, containerd float64
		want               string
	}{
		{m, 50, 100, "reached"},
		{m, 51, 100, "not yet"},
		{m, 110, 100, "not yet"},
		{m, 111, 100, "SLOWER"},
		{metric{unit: "ms"}, 90, 100, ""},
		{metric{unit: "ms"}, 120, 100, "SLOWER"},
		{metric{unit: "ms", goal: 1.5}, 149, 100, "reached"},
		{metric{unit: "ms", goal: 1.5}, 151, 100, "SLOWER"},
		{metric{unit: "KB", goal: 0.01, most: 200}, 80, 9000, "reached"},
		{metric{unit: "KB", goal: 0.01, most: 200}, 201, 9000, "MORE than 200 KB"},
	} {
		if got := c.m.verdict(c.gantry, c.containerd); got != c.want {
			t.Errorf("%v of %v with %+v: %q, want %q", c.gantry, c.containerd, c.m, got, c.want)
		}
	}
}

func TestResults(t *testing.T) {
	t.Parallel()
	r := results{}
	for i := range 5 {
		r.add(mStart, "gantry", 300+float64(i))
		r.add(mStart, "containerd", 1000)
		r.add(mBridge, floorEngine, 250)
	}
	r.add(mExec, "gantry", 50) // the other engine was not measured
	var out strings.Builder
	if err := r.table(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pod start to first log line", "302 (301-303)", "0.302", "reached", "ADD of the CNI plugin"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if !strings.Contains(out.String(), "50.0 (50.0-50.0)  -") {
		t.Errorf("a metric of one engine alone is not shown, or judged:\n%s", out.String())
	}
	got := r.csv(label{"abc", "a, b", "1.5"}, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	want := "2026-01-02T03:04Z,abc,a; b,1.5,start,gantry,ms,302,301,303,5\n"
	if !strings.HasPrefix(got, want) || strings.Count(got, "\n") != 4 {
		t.Errorf("got\n%swant it to begin with\n%s", got, want)
	}
}

// TestMetrics: a name is the key of a column that is kept for ever.
func TestMetrics(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	known := map[string]bool{"": true}
	for _, m := range floors() {
		known[m.name] = true
	}
	for _, m := range append(metrics(), floors()...) {
		if seen[m.name] || m.unit == "" || m.title == "" {
			t.Errorf("metric %q is there twice, or is incomplete: %+v", m.name, m)
		}
		seen[m.name] = true
		if !known[m.floor] {
			t.Errorf("metric %s: floor %q is not measured", m.name, m.floor)
		}
	}
}

func TestGrown(t *testing.T) {
	t.Parallel()
	before, after := memory{"systemd": 10000, "gone": 500, "same": 7}, memory{"systemd": 12000, "same": 8, "containerd-shim": 9000}
	if got, want := grown(before, after), "containerd-shim 0 9000, systemd 10000 12000, gone 500 0"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := after.total() - before.total(); got != 10501 {
		t.Errorf("total grew by %v", got)
	}
	if got := pss([]byte("55c0-7ffd ---p 00000000 00:00 0 [rollup]\nRss:   5000 kB\nPss:    1234 kB\nPss_Dirty: 5 kB\n")); got != 1234 {
		t.Errorf("PSS %v, want 1234", got)
	}
}
