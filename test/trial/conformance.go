package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// conformanceSuite are some specs of Kubernetes' node suite, as a suite among ours. It
// is left out where the programs would have to be built first.
const conformanceSuite = "conformance"

// chosenSpecs lists them, each by its whole name.
const chosenSpecs = "test/nodesuite/chosen.txt"

func readChosen(repo string) (specs []string, err error) {
	data, err := os.ReadFile(filepath.Join(repo, chosenSpecs))
	if err != nil {
		return nil, fmt.Errorf("read the list of chosen specs: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			specs = append(specs, line)
		}
	}
	return specs, nil
}

// deadlineVariable holds the time, in seconds since 1970, when whoever runs all suites
// ends them.
const deadlineVariable = "GANTRY_TEST_DEADLINE"

// conformanceTakes is how long the suite takes on a slow machine.
const conformanceTakes = 15 * time.Minute

// lacksTime says why the suite is not begun any more, "" if there is time for it.
func lacksTime(deadline string, now time.Time) (string, error) {
	if deadline == "" {
		return "", nil
	}
	seconds, err := strconv.ParseInt(deadline, 10, 64)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", deadlineVariable, err)
	}
	if left := time.Unix(seconds, 0).Sub(now); left < conformanceTakes {
		return fmt.Sprintf("%s are left, and it may take %s", left.Round(time.Second), conformanceTakes), nil
	}
	return "", nil
}

// lacksConformance says why the suite cannot be run now, "" if it can.
func (t *trial) lacksConformance(ctx context.Context, now time.Time) (string, error) {
	if lacks, err := lacksTime(os.Getenv(deadlineVariable), now); lacks != "" || err != nil {
		return lacks, err
	}
	for _, p := range []peer{nodeSuitePeer(), kubeletPeer(), agnhostPeer()} {
		dir, err := p.cached(ctx, t)
		if err != nil {
			return "", err
		}
		if !exists(dir) {
			return fmt.Sprintf("%s is not built on this machine; make test-node-e2e does it, and runs all specs", filepath.Base(p.packages[0])), nil
		}
	}
	return "", nil
}

// roomyVM is for a VM that runs alone: the suite brings an API server and etcd along.
func roomyVM() error {
	return errors.Join(os.Setenv("GANTRY_VM_CPUS", "2"), os.Setenv("GANTRY_VM_MEM", "8192"))
}

// runConformance runs the chosen specs and reports as "go test" does. What fails is run
// once more: the suite's own time limits are those of a real machine.
func (t *trial) runConformance(ctx context.Context, v vm) (tally, error) {
	repo, err := repository()
	if err != nil {
		return tally{}, err
	}
	specs, err := readChosen(repo)
	if err != nil {
		return tally{}, err
	}
	how := nodeE2E{focus: conformanceFocus, skip: conformanceSkip, procs: 4, engine: "gantry"}
	if err := t.installNodeE2E(ctx, v, how); err != nil {
		return tally{}, err
	}
	start := time.Now()
	results, err := t.runBatch(ctx, v, how, specs)
	if err != nil && !errors.Is(err, errNoSpec) {
		return tally{}, err
	}
	done := map[string]specResult{}
	for _, r := range results {
		done[r.Spec] = r
	}
	if again := failedOf(specs, done); len(again) > 0 {
		for _, spec := range again {
			fmt.Printf("will be tried again: %s: %s\n", spec, oneLine(done[spec].Reason))
		}
		if results, err = t.runBatch(ctx, v, how, again); err != nil {
			return tally{}, err
		}
		for _, r := range results {
			done[r.Spec] = r
		}
	}
	total := printSpecs(os.Stdout, specs, done)
	if total.failed > 0 {
		err = &remoteError{fmt.Errorf("chosen specs: %s", total)}
	}
	return total, t.sum(conformanceSuite, total, start, err)
}

func failedOf(specs []string, done map[string]specResult) (out []string) {
	for _, spec := range specs {
		if r := done[spec]; r.State != "passed" && r.State != "skipped" {
			out = append(out, spec)
		}
	}
	return out
}

// printSpecs writes verdicts as tests do. One that was skipped was chosen for nothing.
func printSpecs(out io.Writer, specs []string, done map[string]specResult) (total tally) {
	for _, spec := range specs {
		r := done[spec]
		verdict := "FAIL"
		if r.State == "passed" {
			verdict = "PASS"
			total.passed++
		} else {
			total.failed++
			fmt.Fprintf(out, "    %s: %s\n", cmp.Or(r.State, notRun), oneLine(r.Reason))
		}
		fmt.Fprintf(out, "--- %s: %s (%.2fs)\n", verdict, spec, r.Seconds)
	}
	return total
}
