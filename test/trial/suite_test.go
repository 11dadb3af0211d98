package main

import (
	"strings"
	"testing"
)

const suiteOutput = `=== RUN   TestGood
    good_test.go:3: chatter
=== RUN   TestGood/part
--- PASS: TestGood (0.10s)
    --- PASS: TestGood/part (0.00s)
=== RUN   TestBad
    bad_test.go:7: it broke
--- FAIL: TestBad (0.00s)
=== RUN   TestNot
    not_test.go:9: SKIPPED: no kvm
--- SKIP: TestNot (0.00s)
FAIL
`

func TestFollow(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	got := follow(strings.NewReader(suiteOutput), &out, false)
	if want := (tally{passed: 1, failed: 1, skipped: 1}); got.tally != want || got.begun != want.total() || len(got.names) != 1 || got.names[0] != "TestBad" {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	for _, want := range []string{"it broke", "no kvm", "--- PASS: TestGood"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "chatter") || strings.Contains(out.String(), "/part") {
		t.Errorf("output has what a passing test printed:\n%s", out.String())
	}
	out.Reset()
	follow(strings.NewReader(suiteOutput), &out, true)
	if out.String() != suiteOutput {
		t.Errorf("verbose output differs:\n%s", out.String())
	}
}
