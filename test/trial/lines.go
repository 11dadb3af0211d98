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

// failedLines bounds what is said again of one failed test.
const failedLines = 40

func (l *lineWriter) line(suite, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%s: %s\n", suite, text)
}

// copy counts the tests on the way.
func (l *lineWriter) copy(in io.Reader, suite string) tally {
	var n tally
	left := 0 // lines of a failed test to be kept
	lines := bufio.NewReader(in)
	for {
		text, err := lines.ReadString('\n')
		if text != "" {
			kind := verdict(text)
			n.count(kind)
			text = strings.TrimSuffix(text, "\n")
			l.line(suite, text)
			if kind == "FAIL" || strings.HasPrefix(text, "panic: ") {
				left = failedLines
			} else if kind != "" {
				left = 0
			}
			if left > 0 {
				left--
				l.keep(suite, text)
			}
		}
		if err != nil {
			return n
		}
	}
}

func (l *lineWriter) keep(suite, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failed = append(l.failed, suite+": "+text)
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
