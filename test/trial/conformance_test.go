package main

import (
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"
)

// TestChosenSpecs: what is chosen are specs of the default lane that passed before, and
// that take a quarter of an hour at most.
func TestChosenSpecs(t *testing.T) {
	t.Parallel()
	specs, err := readChosen("../..")
	if err != nil {
		t.Fatal(err)
	}
	all, err := readResults(filepath.Join("../..", conformanceResults))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]specResult{}
	for _, r := range all {
		known[r.Spec] = r
	}
	focus, skip := regexp.MustCompile(conformanceFocus), regexp.MustCompile(conformanceSkip)
	var seconds float64
	for i, spec := range specs {
		r := known[spec]
		if r.State != "passed" || !focus.MatchString(spec) || skip.MatchString(spec) {
			t.Errorf("%q (%s): want one of the default lane that passed", spec, r.State)
		}
		if slices.Contains(specs[:i], spec) {
			t.Errorf("%q is there twice", spec)
		}
		seconds += r.Seconds
	}
	// What is recorded of each was taken beside others. Together they take less than half of the
	// sum: four run at a time.
	if most := conformanceTakes.Seconds(); len(specs) < 25 || seconds/2 > most {
		t.Errorf("%d specs, %.0f s with two at a time; want 25 and at most %.0f s", len(specs), seconds/2, most)
	}
}

func TestSpecsAsTests(t *testing.T) {
	t.Parallel()
	done := map[string]specResult{
		"a": {Spec: "a", State: "passed"}, "b": {Spec: "b", State: "failed", Reason: "why"}, "c": {Spec: "c", State: "skipped"},
	}
	specs := []string{"a", "b", "c", "d"}
	if got := failedOf(specs, done); !slices.Equal(got, []string{"b", "d"}) {
		t.Errorf("to be tried again: %q", got)
	}
	if n := printSpecs(io.Discard, specs, done); n != (tally{passed: 1, failed: 3}) {
		t.Errorf("counted %s", n)
	}
}

func TestConformanceIsNotBegunTooLate(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_000_000, 0)
	for deadline, want := range map[string]bool{"": false, "1003600": false, "1000600": true, "999000": true} {
		if why, err := lacksTime(deadline, now); err != nil || (why != "") != want {
			t.Errorf("deadline %q: %q, %v", deadline, why, err)
		}
	}
	if _, err := lacksTime("soon", now); err == nil {
		t.Error("a deadline that is no number was taken")
	}
}
