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
	n, _ := l.copy(strings.NewReader("=== RUN   TestA\n--- PASS: TestA (0.1s)\n    --- FAIL: TestB/x (0s)\n--- FAIL: TestB (1s)\n--- SKIP: TestC (1s)\nend"), "node")
	if n != (tally{passed: 1, failed: 1, skipped: 1}) {
		t.Errorf("counted %s", n)
	}
	if len(l.failed) != 2 || l.failed[1] != "node: --- FAIL: TestB (1s)" {
		t.Errorf("kept of failed tests: %q", l.failed)
	}
	if !strings.HasPrefix(out.String(), "node: === RUN   TestA\nnode: --- PASS") || !strings.HasSuffix(out.String(), "node: end\n") {
		t.Errorf("printed %q", out.String())
	}
	if laneName("ci", 0) != "ci" || laneName("ci", 1) != "ci-2" {
		t.Error("names of lanes")
	}
}

// A run that could not try everything is another one than a run that was not asked to.
func TestLackingTestsAreCounted(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]int{"NOT RUN: there is no kubelet": 1, "LEFT OUT: it measures": 0} {
		l := &lineWriter{out: &bytes.Buffer{}}
		n, _ := l.copy(strings.NewReader("=== RUN   TestA\n    a_test.go:3: "+reason+"\n--- SKIP: TestA (0s)\n"), "node")
		if n.skipped != 1 || n.lacking != want {
			t.Errorf("%s: counted %+v", reason, n)
		}
	}
}

// Of a suite that breaks down between two tests, the end of what it said is kept.
func TestLastLinesAreKept(t *testing.T) {
	t.Parallel()
	l := &lineWriter{out: &bytes.Buffer{}}
	_, last := l.copy(strings.NewReader(strings.Repeat("--- PASS: TestA (1s)\n", 100)+"trial: the connection broke\n"), "node")
	if len(last) != suiteLines || last[suiteLines-1] != "trial: the connection broke" {
		t.Errorf("kept %q", last)
	}
}

// The text is what "go test -v" prints.
func TestFailedTestsAreSaidAgain(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	l := &lineWriter{out: &out}
	in := "=== RUN   TestA\n    a_test.go:3: no matter\n--- PASS: TestA (1s)\n" +
		"=== RUN   TestB\n" + strings.Repeat("    b_test.go:5: more\n", 100) + "=== RUN   TestB/part\n    b_test.go:7: why\n" +
		"--- FAIL: TestB (1s)\n    --- FAIL: TestB/part (0s)\n" +
		"=== RUN   TestC\n    c_test.go:1: no matter\n--- PASS: TestC (1s)\n" +
		"=== RUN   TestD\npanic: oh\n\ngoroutine 7\nFAIL\n"
	l.copy(strings.NewReader(in), "node")
	out.Reset()
	l.again()
	want := "\nfailed tests, again:\n" + strings.Repeat("node:     b_test.go:5: more\n", failedLines-3) +
		"node: === RUN   TestB/part\nnode:     b_test.go:7: why\nnode: --- FAIL: TestB (1s)\nnode:     --- FAIL: TestB/part (0s)\n" +
		"node: panic: oh\nnode: \nnode: goroutine 7\n\n"
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
				got := slices.Concat(slices.Concat(lanes...), free, last, []string{conformanceSuite})
				var want []string
				for _, suite := range suites() {
					if suite == clusterSuite && !long {
						continue
					}
					if parts := partsOf(suite); slices.Contains(got, suite+"-1") {
						want = append(want, parts...)
					} else {
						want = append(want, suite)
					}
				}
				slices.Sort(got)
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Errorf("suites %v are run, want each of %v once", got, want)
				}
			})
		}
	}
}
