package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// suites are the packages whose tests run in the VM: the installed product seen
// from outside, and Gantry's packages on a real machine. Last come those tests of
// the first that take the machine down.
func suites() []string {
	return []string{"node", "e2e", clusterSuite, powerSuite, exitsSuite, killsSuite, selinuxSuite, conformanceSuite}
}

// clusterSuite is a node of a cluster: its kubelet has an API server.
const clusterSuite = "cluster"

// These suites are no packages of their own. Each of the first is a test of package e2e
// that takes many minutes, and is apart so that it can run beside the others, in another
// VM; the last is for a VM that is booted with SELinux in AppArmor's place.
const exitsSuite, killsSuite, selinuxSuite = "exits", "kills", "selinux"

// apartTest is the pattern of the tests of such a suite, "" of another.
func apartTest(suite string) string {
	switch suite {
	case exitsSuite:
		return "^TestExitsWhilePID1IsBusy$"
	case killsSuite:
		return "^TestKillsWhilePID1IsBusy$"
	case selinuxSuite:
		return "^TestSELinux"
	}
	return ""
}

// packageOf tells the package that has a suite's tests.
func packageOf(suite string) string {
	switch suite {
	case exitsSuite, killsSuite:
		return "e2e"
	case selinuxSuite:
		return "node"
	}
	return suite
}

const suiteDir = "/usr/local/lib/trial"

// suiteRun is how tests are to be run.
type suiteRun struct {
	pattern string
	engine  string
	verbose bool
	long    bool // all of what takes many minutes
	limit   time.Duration
	retry   bool // see tryAgain
}

func runTest(ctx context.Context, t *trial, args []string) error {
	var how suiteRun
	flags := t.flags("test")
	flags.StringVar(&how.pattern, "run", "", "only the tests whose names match this regular expression")
	flags.BoolVar(&how.verbose, "v", false, "show what passing tests print")
	flags.BoolVar(&how.retry, "retry", false, fmt.Sprintf("try up to %d tests that failed once more, alone; FLAKY is who passes then", mostRetried))
	flags.BoolVar(&how.long, "long", false, "do all of what takes many minutes: thousands of ends, of lines, of descriptors")
	flags.DurationVar(&how.limit, "timeout", 0, fmt.Sprintf("end the tests after this long (default an hour, %s with --long)", longLimit))
	flags.StringVar(&how.engine, "cri", "", "try the tests themselves on another engine, at this endpoint; implies --suite node")
	only := flags.String("suite", "", "only this suite: "+strings.Join(suites(), " or ")+"; node-1 is the first part of node")
	keep := flags.Bool("keep", false, "leave the VM up at the end if this command booted it")
	noInstall := flags.Bool("no-install", false, "test what is installed in the VM already")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if how.limit == 0 {
		how.limit = time.Hour
		if how.long {
			how.limit = longLimit
		}
	}
	chosen, err := chooseSuites(*only, how)
	if err != nil {
		return err
	}
	t.selinux = len(chosen) == 1 && chosen[0] == selinuxSuite
	v := t.vm()
	if v.pid() == 0 && *noInstall {
		return fmt.Errorf("test VM %s: it does not run, so nothing is installed in it; leave out --no-install", v.name)
	}
	booted, end, err := t.upFor(ctx, *keep)
	if err != nil {
		return err
	}
	defer end()
	// The suite of others has an installation of its own.
	ours := len(chosen) != 1 || chosen[0] != conformanceSuite
	if !*noInstall && ours {
		if err := t.installNode(ctx, v); err != nil {
			return err
		}
	}
	if !*noInstall && ours && how.engine == "" {
		if err := t.installGantry(ctx, v); err != nil {
			return err
		}
	}
	if err := t.peersToo(ctx, v, chosen); err != nil {
		return err
	}
	if !booted {
		if err := t.clear(ctx, v); err != nil {
			return err
		}
	}
	return t.runSuites(ctx, v, chosen, how)
}

// chooseSuites are those that one VM can run, one after the other.
func chooseSuites(only string, how suiteRun) ([]string, error) {
	switch {
	case how.engine != "":
		return []string{"node"}, nil
	case only != "":
		if whole, _, _ := wholeOf(only); !slices.Contains(suites(), whole) {
			return nil, fmt.Errorf("suite %q is unknown: use %s", only, strings.Join(suites(), " or "))
		}
		return []string{only}, nil
	}
	return slices.DeleteFunc(suites(), func(s string) bool {
		ofAnotherVM := s == selinuxSuite || s == conformanceSuite
		return ofAnotherVM || how.pattern != "" && apartTest(s) != "" // its tests are those of a package, too
	}), nil
}

// clear takes away pods that run in the VM, with the kubelet that would start them
// again: "make demo" leaves its own. The tests count what is on the machine.
func (t *trial) clear(ctx context.Context, v vm) error {
	return t.say.step("clear VM "+v.name+" of pods", func() error {
		return v.show(ctx, `set -e
systemctl stop 'trial-kubelet@*' 'trial-apiserver*' 'trial-etcd*'
rm -f /etc/kubernetes/manifests/*.yaml
if command -v gantry >/dev/null; then for id in $(gantry list --quiet); do gantry rm --force "$id"; done; fi`)
	})
}

// runSuites goes on with the next suite when one fails, so that one run tells
// all there is to know.
func (t *trial) runSuites(ctx context.Context, v vm, chosen []string, how suiteRun) error {
	var failed error
	var total tally
	for _, suite := range chosen {
		result, err := t.runSuite(ctx, v, suite, how)
		total.add(result)
		if err == nil {
			continue
		}
		var told *remoteError
		if !errors.As(err, &told) {
			fmt.Printf("%v\nFAIL\tgantry/test/%s [not run]\n", err, suite)
			err = &remoteError{err}
		}
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	if len(chosen) > 1 {
		fmt.Printf("all suites: %s\n", total)
	}
	return failed
}

// pushSuite builds a suite's test program and puts it into the VM.
func (t *trial) pushSuite(ctx context.Context, v vm, suite string) error {
	repo, err := repository()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "trial-suite-")
	if err != nil {
		return fmt.Errorf("make a directory for the tests: %w", err)
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, suite+".test")
	err = t.say.step("build the tests of "+suite, func() error {
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "e2e,containers_image_openpgp", "-trimpath", "-ldflags", "-s -w", "-o", program, "./test/"+suite)
		cmd.Dir = repo
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		return runQuiet(cmd)
	})
	if err != nil {
		return err
	}
	return t.say.step("push the tests of "+suite, func() error {
		if err := v.push(ctx, program, suiteDir+"/"+suite+".test"); err != nil {
			return err
		}
		testdata := filepath.Join(repo, "test", suite, "testdata")
		if !exists(testdata) {
			return nil
		}
		return v.push(ctx, testdata, suiteDir+"/testdata")
	})
}

// runSuite runs a suite in the VM and reports as "go test" does, with the count
// of tests in front: one that could not run is not one that passed.
func (t *trial) runSuite(ctx context.Context, v vm, suite string, how suiteRun) (tally, error) {
	switch suite {
	case powerSuite:
		return t.runPower(ctx, v, how)
	case conformanceSuite:
		return t.runConformance(ctx, v)
	}
	name := suite
	suite, part, of := wholeOf(name)
	if err := t.pushSuite(ctx, v, packageOf(suite)); err != nil {
		return tally{}, err
	}
	start := time.Now()
	options := " -test.run=" + quote(how.pattern) + " -test.skip=" + quote(halves)
	if how.pattern == "" {
		list, err := t.leftOut(suite, how.long)
		if err != nil {
			return tally{}, err
		}
		only, err := t.onlyPart(ctx, v, suite, part, of)
		if err != nil {
			return tally{}, err
		}
		options = only + wholeSuite(list, suite)
	}
	result, err := t.runProgram(ctx, v, packageOf(suite), "", options, how)
	result, err = t.tryAgain(ctx, v, packageOf(suite), result, err, how)
	var told *remoteError
	if err != nil && !errors.As(err, &told) {
		return result.tally, err
	}
	return result.tally, t.sum(name, result.tally, start, err)
}

// wholeSuite are the options that choose all of a suite but what is left out.
func wholeSuite(list []unproved, suite string) string {
	skip := append(unprovedNames(list, suite), halves)
	if only := apartTest(suite); only != "" {
		return " -test.run=" + quote(only) + " -test.skip=" + quote(strings.Join(skip, "|"))
	}
	skip = append(skip, apartTest(exitsSuite), apartTest(killsSuite), apartTest(selinuxSuite))
	return " -test.skip=" + quote(strings.Join(skip, "|"))
}

// streamTests runs a test program in the VM, shows its output and counts.
func (v vm) streamTests(ctx context.Context, command string, verbose bool) (outcome, error) {
	r, w := io.Pipe()
	done := make(chan outcome, 1)
	go func() { done <- follow(r, os.Stdout, verbose) }()
	err := v.stream(ctx, command, nil, w, os.Stderr)
	w.Close()
	return <-done, err
}

// sum prints how a suite ended; failed is what its tests ended with.
func (t *trial) sum(suite string, result tally, start time.Time, failed error) error {
	took := time.Since(start).Seconds()
	if result.skipped > 0 {
		fmt.Printf("NOT RUN: %d of %d tests were skipped, for the reasons above\n", result.skipped, result.total())
	}
	fmt.Println(result)
	if failed != nil {
		fmt.Printf("FAIL\tgantry/test/%s\t%.3fs\n", suite, took)
		return failed
	}
	fmt.Printf("ok  \tgantry/test/%s\t%.3fs\n", suite, took)
	return nil
}

// leftOut lists the tests that are not run because they were never seen to pass, or take too
// long for a run that is not, and says which of the suite are among them.
func (t *trial) leftOut(suite string, long bool) ([]unproved, error) {
	repo, err := repository()
	if err != nil {
		return nil, err
	}
	list, err := readUnproved(repo)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(list, func(u unproved) bool { return u.long && long })
	for _, u := range list {
		if u.suite == suite {
			fmt.Println("NOT RUN:", u)
		}
	}
	return list, nil
}

// tally counts top-level tests. Of those that were skipped some lacked something, and of
// those that passed some had failed before.
type tally struct{ passed, failed, skipped, lacking, flaky int }

func (n tally) String() string {
	text := fmt.Sprintf("%d passed, %d failed, %d skipped", n.passed, n.failed, n.skipped)
	if n.flaky > 0 {
		text += fmt.Sprintf(", %d FLAKY", n.flaky)
	}
	return text
}

func (n *tally) add(m tally) {
	n.passed += m.passed
	n.failed += m.failed
	n.skipped += m.skipped
	n.lacking += m.lacking
	n.flaky += m.flaky
}

func (n tally) total() int { return n.passed + n.failed + n.skipped }

// follow copies the output of a test program run with -test.v. Unless verbose,
// what a passing test prints is left out; failures and skips are shown whole.
func follow(in io.Reader, out io.Writer, verbose bool) outcome {
	var n outcome
	var held []string
	over := false // the test that ran last has passed; its parts follow
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			kind := verdict(line)
			n.count(kind)
			if kind == "start" {
				n.begun++
			}
			if kind == "FAIL" {
				n.names = append(n.names, strings.Fields(line)[2])
			}
			if kind != "" {
				over = kind == "PASS"
			}
			switch {
			case kind == "" && over && !verbose:
			case verbose || kind == "end":
				io.WriteString(out, strings.Join(held, "")+line)
				held = nil
			case kind == "start":
				io.WriteString(out, strings.Join(held, ""))
				held = []string{line}
			case kind == "PASS":
				io.WriteString(out, line)
				held = nil
			case kind == "FAIL", kind == "SKIP":
				io.WriteString(out, strings.Join(held, "")+line)
				held = nil
			default:
				held = append(held, line)
			}
		}
		if err != nil {
			io.WriteString(out, strings.Join(held, ""))
			return n
		}
	}
}

// verdict says what a line of test output means for a top-level test.
func verdict(line string) string {
	if rest, ok := strings.CutPrefix(line, "=== RUN   "); ok && !strings.Contains(rest, "/") {
		return "start"
	}
	for _, kind := range []string{"PASS", "FAIL", "SKIP"} {
		if strings.HasPrefix(line, "--- "+kind+": ") {
			return kind
		}
	}
	if strings.HasPrefix(line, flakyMark) {
		return "FLAKY"
	}
	if line == "PASS\n" || line == "FAIL\n" || strings.HasPrefix(line, "panic: ") {
		return "end"
	}
	return ""
}

func (n *tally) count(kind string) {
	switch kind {
	case "PASS":
		n.passed++
	case "FAIL":
		n.failed++
	case "SKIP":
		n.skipped++
	case "FLAKY": // it was counted twice
		n.failed--
		n.flaky++
	}
}
