// Command report reads the output of "go test -json" and prints it for people: a
// line a package, failed tests whole, skipped tests with their reason, and the
// counts at the end. It fails when a test failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// event is a line of test2json's output.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64
	Output     string
}

func main() {
	if !report(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// report tells whether all went well.
func report(in io.Reader, out io.Writer) bool {
	r := reporter{out: out, printed: map[string]string{}}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Fprintln(out, lines.Text()) // go itself speaks
			continue
		}
		r.event(e)
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(out, "read the tests' output:", err)
		r.broken = true
	}
	if r.skipped > 0 {
		fmt.Fprintf(out, "NOT RUN: %d tests were skipped, for the reasons above\n", r.skipped)
	}
	fmt.Fprintf(out, "unit tests: %d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	return !r.broken && r.passed > 0
}

// reporter counts top-level tests.
type reporter struct {
	out                     io.Writer
	passed, failed, skipped int
	broken                  bool
	printed                 map[string]string // what a test or package printed so far
}

func (r *reporter) event(e event) {
	key := e.Package + " " + e.Test
	one := 0
	if e.Test != "" && !strings.Contains(e.Test, "/") {
		one = 1
	}
	switch e.Action {
	case "output":
		if !strings.HasPrefix(e.Output, "=== ") {
			r.printed[key] += e.Output
		}
		return
	case "build-output":
		fmt.Fprint(r.out, e.Output)
		return
	case "pass":
		r.passed += one
		if e.Test == "" {
			fmt.Fprintf(r.out, "ok    %s %.1fs\n", e.Package, e.Elapsed)
		}
	case "fail":
		r.broken = true
		r.failed += one
		fmt.Fprint(r.out, r.printed[key])
		if e.Test == "" {
			r.unfinished(e.Package)
		}
	case "skip":
		r.skipped += one
		if e.Test != "" {
			fmt.Fprintf(r.out, "SKIP  %s %s\n%s", e.Package, e.Test, r.printed[key])
		}
	case "build-fail":
		r.broken = true
	default:
		return
	}
	delete(r.printed, key)
}

// unfinished prints what tests of a package said that never ended: the package was
// killed, and why may be in there.
func (r *reporter) unfinished(pkg string) {
	for _, key := range slices.Sorted(maps.Keys(r.printed)) {
		if test, ok := strings.CutPrefix(key, pkg+" "); ok && test != "" {
			fmt.Fprintf(r.out, "--- UNFINISHED: %s\n%s", test, r.printed[key])
			delete(r.printed, key)
		}
	}
}
