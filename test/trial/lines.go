package main

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"sync"
)

// lineWriter mixes the output of suites line by line, each with the suite's name.
type lineWriter struct {
	mu     sync.Mutex
	out    io.Writer
	failed []string // what failed tests printed, to be read without a search
}

// suiteLines is how much is said again of a suite that failed though none of its tests did.
const suiteLines = 20

// failedLines bounds what is said again of one failed test, before and behind its verdict.
const failedLines = 40

func (l *lineWriter) line(suite, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%s: %s\n", suite, text)
}

// copy counts the tests on the way, and returns the last lines too. With -test.v what a test prints comes before the
// line that says that it failed, and what its parts came to after it.
func (l *lineWriter) copy(in io.Reader, suite string) (n tally, last []string) {
	var before []string // of the test that runs
	after := 0          // lines behind a failure to be kept
	lines := bufio.NewReader(in)
	for {
		text, err := lines.ReadString('\n')
		if text != "" {
			kind := verdict(text)
			n.count(kind)
			text = strings.TrimSuffix(text, "\n")
			l.line(suite, text)
			before = append(before[max(0, len(before)-failedLines+1):], text)
			last = append(last[max(0, len(last)-suiteLines+1):], text)
			if kind == "SKIP" && strings.Contains(strings.Join(before, "\n"), ": NOT RUN: ") {
				n.lacking++
			}
			switch {
			case kind == "FAIL" || strings.HasPrefix(text, "panic: "):
				l.keep(suite, before)
				before, after = nil, failedLines
			case kind != "":
				before, after = nil, 0
			case after > 0:
				after--
				l.keep(suite, []string{text})
			}
		}
		if err != nil {
			return n, last
		}
	}
}

// keep has lines said again.
func (l *lineWriter) keep(suite string, lines []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, text := range lines {
		l.failed = append(l.failed, suite+": "+text)
	}
}

// again repeats what failed tests printed: between two suites' lines, an hour back, it
// is hard to find.
func (l *lineWriter) again() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.failed) > 0 {
		fmt.Fprintf(l.out, "\nfailed tests, again:\n%s\n\n", strings.Join(l.failed, "\n"))
	}
}
