package main

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

func TestWorthATry(t *testing.T) {
	t.Parallel()
	ended := func(code string) error { return &remoteError{exec.Command("sh", "-c", "exit "+code).Run()} }
	for what, c := range map[string]struct {
		names  []string
		lost   int
		failed error
		want   bool
	}{
		"one":                {[]string{"TestA"}, 0, ended("1"), true},
		"a verdict was lost": {[]string{"TestA"}, 1, ended("1"), false},
		"nothing failed":     {nil, 0, nil, false},
		"no test failed":     {nil, 0, ended("1"), false},
		"many":               {strings.Split("TestA TestB TestC TestD", " "), 0, ended("1"), false},
		"a panic behind it":  {[]string{"TestA"}, 0, ended("2"), false},
		"a connection broke": {[]string{"TestA"}, 0, errors.New("broken"), false},
	} {
		first := outcome{tally: tally{passed: 7, failed: len(c.names)}, begun: 7 + len(c.names) + c.lost, names: c.names}
		if got := worthATry(first, c.failed); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

// Who passed the second time is counted once, and so that all can see it.
func TestFlakyTestsAreCounted(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := &lineWriter{out: &out}
	n, _ := l.copy(strings.NewReader("--- FAIL: TestA (1s)\n--- PASS: TestB (1s)\nFAIL\n--- PASS: TestA (1s)\nPASS\n"+flakyMark+"TestA failed, and passed when it was tried again alone\n"), "node")
	if want := (tally{passed: 2, flaky: 1}); n != want || n.String() != "2 passed, 0 failed, 0 skipped, 1 FLAKY" {
		t.Errorf("counted %+v, %s", n, n)
	}
	if len(l.failed) == 0 {
		t.Error("what the failed try printed is not said again")
	}
}
