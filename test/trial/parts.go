package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// partsOfSuites are the suites that are run in parts, "node-1" and so on, when all are
// run: one that takes half an hour would have a VM waiting for the other.
func partsOfSuites() map[string]int { return map[string]int{"node": 3, "e2e": 2} }

func partsOf(suite string) (names []string) {
	for i := range partsOfSuites()[suite] {
		names = append(names, fmt.Sprintf("%s-%d", suite, i+1))
	}
	return names
}

// wholeOf tells the suite that a part is of, and which one it is of how many. Any other
// suite is the first part of one.
func wholeOf(name string) (suite string, part, of int) {
	suite, number, ok := strings.Cut(name, "-")
	part, err := strconv.Atoi(number)
	if of = partsOfSuites()[suite]; ok && err == nil && part >= 1 && part <= of {
		return suite, part, of
	}
	return name, 1, 1
}

// onlyPart are the options that choose a part of a suite's tests. Every n-th is taken:
// those of one file take a similar time.
func (t *trial) onlyPart(ctx context.Context, v vm, suite string, part, of int) (string, error) {
	if of == 1 {
		return "", nil
	}
	out, err := v.output(ctx, fmt.Sprintf("cd %s && ./%s.test -test.list .", suiteDir, suite))
	if err != nil {
		return "", fmt.Errorf("list the tests of %s: %w", suite, err)
	}
	names := partOfTests(out, part, of)
	if len(names) == 0 {
		return "", fmt.Errorf("list the tests of %s: there are none in part %d", suite, part)
	}
	return " -test.run=" + quote(onlyTests(names)), nil
}

// partOfTests chooses from the output of a test program's -test.list.
func partOfTests(list string, part, of int) (names []string) {
	all := slices.Collect(strings.Lines(list))
	all = slices.DeleteFunc(all, func(line string) bool { return !strings.HasPrefix(line, "Test") })
	for i := part - 1; i < len(all); i += of {
		names = append(names, strings.TrimSpace(all[i]))
	}
	return names
}
