package machine

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestTelling(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", 300)
	for name, c := range map[string]struct{ in, want []string }{
		"nothing":  {nil, nil},
		"the last": {[]string{"a", "b", "", "c\r", "d", "e"}, []string{"b", "c", "d", "e"}},
		"a panic": {
			[]string{"[ 1.0] booting", "[ 1.2] Kernel panic - not syncing: no init\r", "[ 1.3] Call Trace:", "[ 1.3]  <TASK>", "x", "y", "z"},
			[]string{"[ 1.2] Kernel panic - not syncing: no init"},
		},
		"the emulator": {[]string{"qemu-system-x86_64: cannot set up guest memory\x1b[0m", "more"}, []string{"qemu-system-x86_64: cannot set up guest memory [0m"}},
		"our own":      {[]string{"last", "gantry-guest: boot the machine: no answer"}, []string{"last"}},
		"the agent":    {[]string{"gantry-guest: boot: load modules: x", "more"}, []string{"gantry-guest: boot: load modules: x"}},
		"a long line":  {[]string{long}, []string{strings.Repeat("é", 120) + "…"}},
	} {
		if got := telling(c.in); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestNotUp(t *testing.T) {
	t.Setenv("INVOCATION_ID", "") // under a unit of its own the test would read the journal
	dir := t.TempDir()
	why := errors.New("prepare machine: no network")
	if err := NotUp(t.Context(), dir, StageBoot, why); !errors.Is(err, why) {
		t.Error(err)
	}
	if got, err := os.ReadFile(errorFile(dir, StageBoot)); err != nil || string(got) != why.Error() {
		t.Errorf("%q, %v", got, err)
	}
}

// TestStagesSayEachTheirOwn: a file server that ends takes its machine with it. Both say so,
// in any order, and the cause counts.
func TestStagesSayEachTheirOwn(t *testing.T) {
	t.Setenv("INVOCATION_ID", "")
	t.Setenv("SERVICE_RESULT", "exit-code")
	t.Setenv("EXIT_CODE", "exited")
	t.Setenv("EXIT_STATUS", "1")
	for _, order := range [][]string{{StageFiles, StageBoot}, {StageBoot, StageFiles}} {
		dir := t.TempDir()
		for _, stage := range order {
			if err := Down(t.Context(), dir, stage); !errors.Is(err, errEnded) {
				t.Error(err)
			}
		}
		files := ErrorFiles(dir)
		for i, stage := range []string{StageFiles, StageBoot} {
			got, err := os.ReadFile(files[i])
			if want := stage + ": its program has ended (exited 1)"; err != nil || string(got) != want {
				t.Errorf("after %q: %q, %v, want %q", order, got, err, want)
			}
		}
	}
}

// TestDown: how a program ended is told if nobody has told why, and added if it says more.
func TestDown(t *testing.T) {
	const known = "boot the machine: no answer"
	for name, c := range map[string]struct{ result, code, status, before, want string }{
		"well":           {"success", "exited", "0", "", ""},
		"no unit":        {"", "", "", "", ""},
		"failed":         {"exit-code", "exited", "1", "", "boot the machine: its program has ended (exited 1)"},
		"for memory":     {"oom-kill", "killed", "KILL", known, known + " (its unit: " + outOfMemory + ")"},
		"no memory":      {"oom-kill", "killed", "KILL", "", "boot the machine: its program has ended (" + outOfMemory + ")"},
		"known":          {"exit-code", "exited", "1", known, known},
		"waiter killed":  {"signal", "exited", "0", "", "boot the machine: its program has ended (exited 0)"},
		"out of time":    {"timeout", "", "", "", "boot the machine: its program has ended (timeout)"},
		"well, but told": {"success", "exited", "0", known, known},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("INVOCATION_ID", "")
			t.Setenv("SERVICE_RESULT", c.result)
			t.Setenv("EXIT_CODE", c.code)
			t.Setenv("EXIT_STATUS", c.status)
			dir := t.TempDir()
			file := errorFile(dir, StageBoot)
			if c.before != "" {
				if err := os.WriteFile(file, []byte(c.before), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			err := Down(t.Context(), dir, StageBoot)
			if err != nil && !errors.Is(err, errEnded) && !strings.Contains(err.Error(), known) {
				t.Error(err)
			}
			got, err := os.ReadFile(file)
			if string(got) != c.want || err != nil && c.want != "" {
				t.Errorf("%q, %v, want %q", got, err, c.want)
			}
		})
	}
}

// TestAwaitEndsWithTheProgram: whoever waits for a program that has ended does not do so
// until its time is over.
func TestAwaitEndsWithTheProgram(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plan, err := json.Marshal(Plan{Run: dir})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, PlanFile), plan, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	const patience = time.Minute
	wait := func(pid int) error { _, err := Await(t.Context(), dir, pid, patience); return err }
	cmd := exec.Command("sleep", "0.3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := wait(cmd.Process.Pid); !errors.Is(err, errEnded) || time.Since(began) > patience/2 {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := wait(cmd.Process.Pid); !errors.Is(err, errEnded) {
		t.Errorf("of a process that is gone: %v", err)
	}
}

func TestAwaitIsBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	plan, err := json.Marshal(Plan{Run: dir})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, PlanFile), plan, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = Await(t.Context(), dir, 0, 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "boot the machine: its agent does not answer within 50ms (kvm.boot-time)") {
		t.Error(err)
	}
}
