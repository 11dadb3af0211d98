package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// powerSuite is no package of its own: its tests are in package node, in two
// halves, and the machine goes down between them.
const powerSuite = "power"

// cycle is a test that takes the machine down: TestPower<name>Before runs, then
// the machine goes down and comes up again, then TestPower<name>After runs and, if
// there is one, TestPower<name>Cost, which judges what the host measured.
type cycle struct {
	name string
	down func(ctx context.Context, t *trial, v vm) (downtime, error)
}

func cycles() []cycle {
	return []cycle{
		{"Reboot", func(ctx context.Context, t *trial, v vm) (downtime, error) {
			return downtime{}, t.reboot(ctx, v, false)
		}},
		{"Off", powerCycle},
		{"Cut", func(ctx context.Context, t *trial, v vm) (downtime, error) { return downtime{}, t.reboot(ctx, v, true) }},
	}
}

func (c cycle) before() string { return "TestPower" + c.name + "Before" }
func (c cycle) after() string  { return "TestPower" + c.name + "After" }
func (c cycle) cost() string   { return "TestPower" + c.name + "Cost" }

// halves matches the tests that make sense with a cycle around them only.
const halves = `^TestPower[A-Za-z]+(Before|After|Cost)$`

// downtime is what the way down took, as seen from outside.
type downtime struct{ wall, cpu time.Duration }

// env tells the second half what only the host could measure.
func (d downtime) env() string {
	return fmt.Sprintf("GANTRY_E2E_DOWN_WALL=%.2f GANTRY_E2E_DOWN_CPU=%.2f", d.wall.Seconds(), d.cpu.Seconds())
}

// chosen says whether a run is to have this cycle: half a one is not to be had.
func (c cycle) chosen(pattern *regexp.Regexp, list []unproved) bool {
	if pattern != nil {
		return pattern.MatchString(c.before()) || pattern.MatchString(c.after()) || pattern.MatchString(c.cost())
	}
	for _, u := range list {
		if u.suite == powerSuite && (u.test == c.before() || u.test == c.after()) {
			return false
		}
	}
	return true
}

// runPower runs all cycles, each on a machine that is up.
func (t *trial) runPower(ctx context.Context, v vm, how suiteRun) (tally, error) {
	cycles, skip, err := t.chosenCycles(how)
	if err != nil || len(cycles) == 0 {
		return tally{}, err
	}
	if err := t.pushSuite(ctx, v, "node"); err != nil {
		return tally{}, err
	}
	start := time.Now()
	var total tally
	var failed error
	for _, c := range cycles {
		result, err := t.runCycle(ctx, v, c, skip, how)
		total.add(result)
		var told *remoteError
		if err != nil && !errors.As(err, &told) {
			return total, fmt.Errorf("cycle %s: %w", c.name, err)
		}
		failed = errors.Join(failed, err)
	}
	return total, t.sum(powerSuite, total, start, failed)
}

// chosenCycles also returns the option that leaves out costs that are not proved.
func (t *trial) chosenCycles(how suiteRun) ([]cycle, string, error) {
	var pattern *regexp.Regexp
	var list []unproved
	var skip string
	var err error
	if how.pattern != "" {
		if pattern, err = regexp.Compile(how.pattern); err != nil {
			return nil, "", fmt.Errorf("tests to run: %w", err)
		}
	} else if list, err = t.leftOut(powerSuite, how.long); err != nil {
		return nil, "", err
	}
	if names := unprovedNames(list, powerSuite); len(names) > 0 {
		skip = " -test.skip=" + quote(strings.Join(names, "|"))
	}
	var chosen []cycle
	for _, c := range cycles() {
		if c.chosen(pattern, list) {
			chosen = append(chosen, c)
		}
	}
	return chosen, skip, nil
}

// runCycle goes no further when the first half fails: nothing is set up then.
func (t *trial) runCycle(ctx context.Context, v vm, c cycle, skip string, how suiteRun) (tally, error) {
	// What is lost with the power must be Gantry's to keep: not the programs that
	// were installed a moment ago.
	if _, err := v.output(ctx, "sync"); err != nil {
		return tally{}, err
	}
	first, err := t.runProgram(ctx, v, "node", "", " -test.run="+quote("^"+c.before()+"$"), how)
	result := first.tally
	if err != nil {
		return result, err
	}
	if result.passed == 0 {
		return result, nil // skipped, and said so
	}
	took, err := c.down(ctx, t, v)
	if err != nil {
		return result, err
	}
	second, err := t.runProgram(ctx, v, "node", took.env(), " -test.run="+quote("^("+c.after()+"|"+c.cost()+")$")+skip, how)
	result.add(second.tally)
	return result, err
}

// powerCycle powers the machine off from inside, and on again. The CPU time is
// that of the whole machine: kernel, systemd, apps, Gantry and CNI plugins.
func powerCycle(ctx context.Context, t *trial, v vm) (downtime, error) {
	pid := v.pid()
	if pid == 0 {
		return downtime{}, v.mustRun()
	}
	var d downtime
	err := t.say.step("power VM "+v.name+" off", func() error {
		before, err := processCPU(pid)
		if err != nil {
			return err
		}
		start := time.Now()
		if _, err := v.output(ctx, "systemctl poweroff"); err != nil {
			t.say.line("systemctl poweroff: %v", err)
		}
		last, err := v.waitOff(ctx, pid)
		d = downtime{wall: time.Since(start), cpu: last - before}
		return err
	})
	if err != nil {
		return d, err
	}
	t.say.line("it took %.1f s, and %.1f s of CPU time of the whole VM", d.wall.Seconds(), d.cpu.Seconds())
	v.dropMaster(ctx)
	return d, t.up(ctx, false, true)
}

// waitOff waits for the end of qemu and returns what CPU time it had used at its
// last sign of life.
func (v vm) waitOff(ctx context.Context, pid int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last time.Duration
	for v.pid() == pid {
		if cpu, err := processCPU(pid); err == nil {
			last = cpu
		}
		select {
		case <-ctx.Done():
			return last, fmt.Errorf("wait for the VM to be off: not after %s; look at: go run ./test/trial --name %s logs", bootLimit, v.name)
		case <-tick.C:
		}
	}
	return last, nil
}

// processCPU is the CPU time, in user and system mode, of all threads that a
// process has or had.
func processCPU(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return parseCPU(string(text))
}

// userHZ is in what /proc counts, on every architecture that Go knows.
const userHZ = 100

func parseCPU(stat string) (time.Duration, error) {
	// The second field is the name, in parentheses, which may hold anything.
	_, rest, ok := strings.Cut(stat[strings.LastIndexByte(stat, ')')+1:], " ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("read CPU time: %q is too short", oneLine(stat))
	}
	var sum time.Duration
	for _, field := range fields[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		sum += time.Duration(ticks) * time.Second / userHZ
	}
	return sum, nil
}

// runProgram runs a suite's test program in the VM with the given environment and
// options.
func (t *trial) runProgram(ctx context.Context, v vm, suite, env, options string, how suiteRun) (outcome, error) {
	if how.long {
		env += " GANTRY_E2E_LONG=1"
	} else if how.pattern == "" {
		fmt.Println("NOT RUN: the long tests do a part of their work; --long has them do all")
	}
	command := fmt.Sprintf("cd %s && GANTRY_E2E_CRI=%s %s exec ./%s.test -test.v -test.timeout=%s%s", suiteDir, quote(how.engine), env, suite, how.limit, options)
	result, err := v.streamTests(ctx, command, how.verbose)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() == 255) {
		return result, fmt.Errorf("run the tests of %s: the connection to VM %s broke: %w", suite, v.name, err)
	}
	if err != nil {
		return result, &remoteError{err}
	}
	return result, nil
}
