package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// unprovedFile lists tests that are written but were not seen to pass yet:
// "SUITE TEST why", a line each. A run of everything leaves them out and says so;
// --run of a test runs it all the same.
const unprovedFile = "test/unproved"

// unproved is one line of the list.
type unproved struct{ suite, test, why string }

func readUnproved(repo string) ([]unproved, error) {
	data, err := os.ReadFile(filepath.Join(repo, unprovedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the list of unproved tests: %w", err)
	}
	return parseUnproved(string(data))
}

func parseUnproved(text string) ([]unproved, error) {
	var out []unproved
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		suite, rest, _ := strings.Cut(line, " ")
		test, why, ok := strings.Cut(rest, " ")
		if !ok || !strings.HasPrefix(test, "Test") {
			return nil, fmt.Errorf("%s: line %q: want SUITE TEST and why", unprovedFile, line)
		}
		out = append(out, unproved{suite, test, strings.TrimSpace(why)})
	}
	return out, nil
}

// unprovedNames are patterns for -test.skip, each for one test of a suite, whole.
func unprovedNames(list []unproved, suite string) []string {
	var names []string
	for _, u := range list {
		if u.suite == suite {
			names = append(names, "^"+regexp.QuoteMeta(u.test)+"$")
		}
	}
	return names
}
