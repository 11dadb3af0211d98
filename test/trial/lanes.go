package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"
)

// lanesOf are the suites of each VM when all are run: much of a test is waiting. The
// first VM is the one that was asked for, with the peers that were put into it. What
// is in none is taken by the first that has nothing left to do. What is judged by its
// processor time comes last in a long run, alone: another emulated machine doubles it.
// The cluster is for a long run alone, as long as a short one takes more than an hour.
func lanesOf(serial, long bool) (lanes [][]string, free, last []string) {
	switch {
	case serial && long:
		return [][]string{{"node", "e2e", clusterSuite, powerSuite, exitsSuite, killsSuite, selinuxSuite}}, nil, nil
	case serial:
		return [][]string{{"node", "e2e", powerSuite, exitsSuite, killsSuite, selinuxSuite}}, nil, nil
	case long:
		return [][]string{{"node"}, {"e2e", clusterSuite}}, []string{exitsSuite, killsSuite, selinuxSuite}, []string{powerSuite}
	}
	free = slices.Concat(partsOf("node")[1:], partsOf("e2e")[1:], []string{exitsSuite, killsSuite, selinuxSuite})
	return [][]string{{"node-1", powerSuite}, {"e2e-1"}}, free, nil
}

// longLimit ends a suite that does all of what takes many minutes.
const longLimit = 3 * time.Hour

// runAll runs all suites in lanes. Each is a trial of its own, so that one that
// breaks down leaves the others alone.
func runAll(ctx context.Context, t *trial, args []string) error {
	flags := t.flags("test-all")
	limit := flags.Duration("timeout", 0, "end each suite after this long")
	long := flags.Bool("long", false, "do all of what takes many minutes")
	retry := flags.Bool("retry", true, "try a few tests of a suite that failed once more, alone; FLAKY is who passes then")
	again := flags.Bool("again", false, "run also what passed before with the same sources on the same machine")
	// The processors of an emulated machine wait for each other: with more of them
	// than the host has, everything takes many times as long.
	both := 2 * processors()
	serial := flags.Bool("serial", runtime.NumCPU() < both, fmt.Sprintf("one VM, one suite after the other; the default where there are less than %d processors for two", both))
	if err := flags.Parse(args); err != nil {
		return err
	}
	var pass []string
	if *limit > 0 {
		pass = append(pass, "--timeout", limit.String())
	}
	if *long {
		pass = append(pass, "--long")
	}
	if *retry {
		pass = append(pass, "--retry")
	}
	lanes, free, last := lanesOf(*serial, *long)
	left := make(chan string, len(free))
	for _, suite := range free {
		left <- suite
	}
	close(left)
	out := &lineWriter{out: os.Stdout}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total tally
	var failed error
	run := func(name, suite string) {
		result, err := t.suiteOnce(ctx, name, suite, pass, *again, out)
		mu.Lock()
		defer mu.Unlock()
		total.add(result)
		failed = errors.Join(failed, err)
	}
	for i, lane := range lanes {
		name := laneName(t.name, i)
		wg.Go(func() {
			for _, suite := range lane {
				run(name, suite)
			}
			for suite := range left {
				run(name, suite)
			}
		})
	}
	wg.Wait()
	for _, suite := range last {
		run(t.name, suite)
	}
	if !*long {
		out.line(clusterSuite, "NOT RUN: it is part of a long run (make test LONG=1), or: trial test --suite "+clusterSuite)
	}
	lacks, err := t.lacksConformance(ctx, time.Now())
	switch {
	case err != nil:
		failed = errors.Join(failed, err)
	case lacks != "":
		out.line(conformanceSuite, "NOT RUN: "+lacks)
	default: // alone, with all of the machine
		if err := errors.Join(t.stopLanes(ctx, lanes), roomyVM()); err != nil {
			return errors.Join(failed, err)
		}
		run(t.name, conformanceSuite)
	}
	out.again()
	fmt.Printf("total: %s\n", total)
	return failed
}

// stopLanes powers the VMs of all lanes off.
func (t *trial) stopLanes(ctx context.Context, lanes [][]string) error {
	var errs []error
	for i := range lanes {
		name := laneName(t.name, i)
		errs = append(errs, vm{name, t.cache.path("vm", name)}.stop(ctx))
	}
	return errors.Join(errs...)
}

// child runs a suite as "trial test" does, with more options to it.
func (t *trial) child(ctx context.Context, name, suite string, options []string, out *lineWriter) (tally, error) {
	exe, err := os.Executable()
	if err != nil {
		return tally{}, err
	}
	args := []string{"--name", name, "test", "--suite", suite}
	cmd := exec.CommandContext(ctx, exe, append(args, options...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	var result tally
	var last []string
	done := make(chan struct{})
	go func() { result, last = out.copy(r, suite); close(done) }()
	err = cmd.Run()
	w.Close()
	<-done
	if err != nil && result.failed == 0 { // it broke down between two tests, or before the first
		out.keep(suite, last)
	}
	if err != nil {
		return result, fmt.Errorf("tests of %s: %w", suite, err)
	}
	if result.total() == 0 {
		return result, fmt.Errorf("tests of %s: none was run", suite)
	}
	return result, nil
}

// laneName names the VM of a lane.
func laneName(name string, lane int) string {
	if lane == 0 {
		return name
	}
	return fmt.Sprintf("%s-%d", name, lane+1)
}
