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
// --run of a test runs it all the same. Where why begins with "long: " the test is proved,
// and a short run has no room for it.
const unprovedFile = "test/unproved"

// unproved is one line of the list.
type unproved struct {
	suite, test, why string
	long             bool
}

func (u unproved) String() string {
	if u.long {
		return fmt.Sprintf("%s of %s is for long runs: %s", u.test, u.suite, u.why)
	}
	return fmt.Sprintf("%s of %s is not proved yet: %s", u.test, u.suite, u.why)
}

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
		why, long := strings.CutPrefix(strings.TrimSpace(why), "long: ")
		out = append(out, unproved{suite, test, why, long})
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
