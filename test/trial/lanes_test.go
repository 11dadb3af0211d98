package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestLinesOfSuites(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := &lineWriter{out: &out}
	n := l.copy(strings.NewReader("=== RUN   TestA\n--- PASS: TestA (0.1s)\n    --- FAIL: TestB/x (0s)\n--- FAIL: TestB (1s)\n--- SKIP: TestC (1s)\nend"), "node")
	if n != (tally{1, 1, 1}) {
		t.Errorf("counted %s", n)
	}
	if !strings.HasPrefix(out.String(), "node: === RUN   TestA\nnode: --- PASS") || !strings.HasSuffix(out.String(), "node: end") {
		t.Errorf("printed %q", out.String())
	}
	if laneName("ci", 0) != "ci" || laneName("ci", 1) != "ci-2" {
		t.Error("names of lanes")
	}
}
