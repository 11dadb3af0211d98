package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"time"
)

const (
	// retryLimit ends the second try.
	retryLimit = 15 * time.Minute
	// mostRetried bounds how many tests of a suite are tried again: more do not fail by
	// chance.
	mostRetried = 3
	// flakyMark begins the line that tells of a test that failed and then passed.
	flakyMark = "FLAKY: "
)

// outcome is a tally, how many tests were begun, and who failed.
type outcome struct {
	tally
	begun int
	names []string
}

// tryAgain runs the tests that failed once more, alone. Who passes is no reason to refuse
// a change, and one to look into: it is told of and counted. See
// docs/decisions/0016-a-failed-test-is-tried-again.md.
func (t *trial) tryAgain(ctx context.Context, v vm, suite string, first outcome, failed error, how suiteRun) (outcome, error) {
	if !how.retry || !worthATry(first, failed) {
		return first, failed
	}
	how.limit = min(how.limit, retryLimit)
	fmt.Printf("%s failed, and is tried again alone\n", strings.Join(first.names, ", "))
	if err := t.clear(ctx, v); err != nil {
		return first, errors.Join(failed, err)
	}
	second, err := t.runProgram(ctx, v, suite, "", " -test.run="+quote(onlyTests(first.names)), how)
	if err != nil || second.passed != len(first.names) {
		return first, failed
	}
	for _, name := range first.names {
		fmt.Printf("%s%s failed, and passed when it was tried again alone\n", flakyMark, name)
	}
	first.add(second.tally)
	for range first.names {
		first.count("FLAKY")
	}
	return first, nil
}

// worthATry tells whether all tests were run, few failed, and no verdict was lost: what a
// test prints without an end of line swallows one, and that test would not be tried again.
func worthATry(first outcome, failed error) bool {
	const testsFailed = 1 // a panic, which keeps others from being run, has another code
	var exit *exec.ExitError
	whole := first.begun == first.total() && errors.As(failed, &exit) && exit.ExitCode() == testsFailed
	return whole && len(first.names) > 0 && len(first.names) <= mostRetried
}

// onlyTests is the pattern of some tests.
func onlyTests(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = regexp.QuoteMeta(name)
	}
	return "^(" + strings.Join(quoted, "|") + ")$"
}
