// Package machine is what tests on a real machine share: the guard that compares
// the machine after a test with the machine before it, time limits that fit an
// emulated one, and small helpers.
package machine

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// Main runs the tests of a package, unless the machine is not one for them.
func Main(m *testing.M) int {
	if err := Check(); err != nil {
		fmt.Fprintln(os.Stderr, "cannot test here:", err)
		return 2
	}
	fmt.Println(Describe())
	return m.Run()
}

// Check refuses machines on which the tests would prove nothing or do
// harm.
func Check() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("run as root: the tests start pods")
	}
	comm, err := os.ReadFile("/proc/1/comm")
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(comm)) != "systemd" {
		return fmt.Errorf("PID 1 is %s, not systemd; use the trial VM: go run ./test/trial test", strings.TrimSpace(string(comm)))
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	if host != "gantry-trial" && os.Getenv("GANTRY_E2E_ANYWHERE") == "" {
		return fmt.Errorf("this is %s and not the trial VM; set GANTRY_E2E_ANYWHERE=1 if pods and CNI state here may be broken", host)
	}
	return nil
}

// Describe says which machine it is, in one line.
func Describe() string {
	facts := []string{firstLine("uname", "-sr"), firstLine("systemctl", "--version"), firstLine("crun", "--version")}
	facts = append(facts, fmt.Sprintf("time limits are %d times a real machine's", Slowness()))
	return "machine: " + strings.Join(facts, "; ")
}

// Slowness is by how much time limits are stretched: a machine emulated in
// software is about ten times slower than a real one.
func Slowness() int {
	if firstLine("systemd-detect-virt") == "qemu" {
		return 10
	}
	return 1
}

// Patience stretches a time limit that would do on a real machine.
func Patience(d time.Duration) time.Duration { return d * time.Duration(Slowness()) }

func firstLine(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil && line == "" {
		return name + ": " + err.Error()
	}
	return line
}

// longEnv asks the tests for all of what takes many minutes: "trial test --long".
const longEnv = "GANTRY_E2E_LONG"

// Long tells whether the tests may take as long as it needs.
func Long() bool { return os.Getenv(longEnv) != "" }

// Amount is how many of a thing a test does: all where it may take long, else some.
func Amount(all, some int) int {
	if Long() {
		return all
	}
	return some
}

// LeftOut skips a test that was not asked for. All runs alike leave it out.
func LeftOut(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Skipf("LEFT OUT: "+format, args...)
}

// NotRun skips a test because the machine lacks something, and says what, so that it
// stands out: "trial test-all" does not remember such a run.
func NotRun(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Skipf("NOT RUN: "+format, args...)
}

// Sh runs a shell command and fails the test unless it succeeds.
func Sh(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", command).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return strings.TrimSpace(string(out))
}

// Eventually waits until ok reports true, at most as long as Patience(limit).
func Eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > Patience(limit) {
			t.Fatalf("%s: not after %s", what, Patience(limit))
		}
		time.Sleep(50 * time.Millisecond)
	}
}
