package main

import (
	"bytes"
	"fmt"
	"slices"
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
	if len(l.failed) != 1 || l.failed[0] != "node: --- FAIL: TestB (1s)" {
		t.Errorf("kept of failed tests: %q", l.failed)
	}
	if !strings.HasPrefix(out.String(), "node: === RUN   TestA\nnode: --- PASS") || !strings.HasSuffix(out.String(), "node: end\n") {
		t.Errorf("printed %q", out.String())
	}
	if laneName("ci", 0) != "ci" || laneName("ci", 1) != "ci-2" {
		t.Error("names of lanes")
	}
}

func TestFailedTestsAreSaidAgain(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := &lineWriter{out: &out}
	l.copy(strings.NewReader("--- FAIL: TestB (1s)\n    b_test.go:7: why\n"+strings.Repeat("    more\n", 100)+"--- PASS: TestC (1s)\n    c_test.go:1: no matter\n"), "node")
	out.Reset()
	l.again()
	want := "\nfailed tests, again:\nnode: --- FAIL: TestB (1s)\nnode:     b_test.go:7: why\n" + strings.Repeat("node:     more\n", failedLines-2) + "\n"
	if out.String() != want {
		t.Errorf("printed %q, want %q", out.String(), want)
	}
}

func TestEverySuiteIsInOneLane(t *testing.T) {
	t.Parallel()
	for _, serial := range []bool{true, false} {
		for _, long := range []bool{true, false} {
			t.Run(fmt.Sprintf("serial=%v long=%v", serial, long), func(t *testing.T) {
				t.Parallel()
				lanes, free, last := lanesOf(serial, long)
				got := slices.Concat(slices.Concat(lanes...), free, last)
				want := suites()
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("suites %v are run, want each of %v once", got, want)
				}
			})
		}
	}
}
