package machine

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/guest"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// TestRecordEnd: who ends first says why; an app whose machine has ended has that as its own
// end.
func TestRecordEnd(t *testing.T) {
	t.Parallel()
	const id = "0123456789abcdef01234567"
	own, files := unit.Machine(id), unit.FileServer(id)
	for name, c := range map[string]struct {
		name    string
		outcome Outcome
		said    string // by the agent
		reason  string
		want    string // "" for no record
	}{
		"killed":                     {own, Outcome{"signal", "killed", "KILL"}, "", pod.ReasonError, "the pod's machine has ended: killed by SIGKILL"},
		"crashed":                    {own, Outcome{"core-dump", "dumped", "SEGV"}, "", pod.ReasonError, "the pod's machine has ended: killed by SIGSEGV"},
		"out of memory":              {own, Outcome{"oom-kill", "killed", "KILL"}, "", pod.ReasonOOMKilled, "the pod's machine was killed for want of memory on the host"},
		"failed":                     {own, Outcome{"exit-code", "exited", "1"}, "", pod.ReasonError, "the pod's machine has ended (exited 1): see journalctl -u " + own},
		"too slow to stop":           {own, Outcome{"timeout", "killed", "KILL"}, "", pod.ReasonError, "the pod's machine has ended (killed KILL): see journalctl -u " + own},
		"files killed":               {files, Outcome{"signal", "killed", "KILL"}, "", pod.ReasonError, "the server of the pod's files has ended: killed by SIGKILL"},
		"files failed":               {files, Outcome{"exit-code", "exited", "101"}, "", pod.ReasonError, "the server of the pod's files has ended (exited 101): see journalctl -u " + files},
		"files end with the machine": {files, Outcome{"success", "exited", "0"}, "", "", ""},
		"files see the agent fail":   {files, Outcome{"exit-code", "exited", "1"}, "serve: broken\n\x1b[31m", pod.ReasonError, "the agent of the pod's machine has failed: serve: broken  [31m"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			podDir := filepath.Join(t.TempDir(), id)
			run := filepath.Join(podDir, "run")
			plan, err := json.Marshal(Plan{Run: run})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(run, ShareDir), 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(podDir, PlanFile), string(plan))
			if c.said != "" {
				write(t, filepath.Join(run, ShareDir, guest.LastWordsFile), c.said)
			}
			for _, o := range []Outcome{c.outcome, {"signal", "killed", "TERM"}} { // the second is too late
				if err := RecordEnd(t.Context(), podDir, c.name, o); err != nil {
					t.Fatal(err)
				}
				if c.want == "" {
					break
				}
			}
			// One that looked before there was a record comes too late, too.
			if file := filepath.Join(podDir, EndFile); c.want != "" {
				if err := writeFirst(file, "late", []byte("{}")); err != nil {
					t.Error(err)
				}
				if parts, err := filepath.Glob(file + ".*"); err != nil || len(parts) > 0 {
					t.Errorf("left are %q, %v", parts, err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			got := awaitEnd(ctx, podDir).exit()
			if c.want == "" {
				c.reason, c.want = pod.ReasonError, "the pod's machine does not answer"
			}
			if got.Code != 137 || got.Signal != 9 || got.Reason != c.reason || got.Message != c.want {
				t.Errorf("%+v, want %s: %s", got, c.reason, c.want)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestEndWithoutRecord: who would have written it was killed too.
func TestEndWithoutRecord(t *testing.T) {
	t.Parallel()
	for events, want := range map[string]string{
		"low 0\noom 2\noom_kill 1\noom_group_kill 0\n": "the pod's machine was killed for want of memory on the host",
		"low 0\noom 0\noom_kill 0\n":                   "the pod's machine does not answer",
		"rubbish":                                      "the pod's machine does not answer",
	} {
		podDir := t.TempDir()
		plan, err := json.Marshal(Plan{Cgroup: podDir})
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(podDir, PlanFile), string(plan))
		write(t, filepath.Join(podDir, "memory.events"), events)
		if got := unrecorded(podDir); got.Message != want || got.OOM != strings.Contains(want, "memory") {
			t.Errorf("%q: %+v", events, got)
		}
	}
}

// TestAgentWords: what a machine says is anything, and there may be none.
func TestAgentWords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir+"/long", strings.Repeat("x", 10000))
	write(t, dir+"/rubbish", "a\x00b\xff")
	if err := os.Symlink("/etc/passwd", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"long": strings.Repeat("x", 512), "rubbish": "a b?", "link": "", ".": "", "none": ""} {
		if got := agentWords(filepath.Join(dir, name)); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestEndAppGoesOn: a process that was killed is no end; what is recorded stays.
func TestEndAppGoesOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, result := range []string{"signal", "core-dump"} {
		if err := EndApp(t.Context(), dir, result); err != ErrGoesOn {
			t.Errorf("%s: %v", result, err)
		}
	}
	write(t, dir+"/exit.json", "{}")
	if err := EndApp(t.Context(), dir, "signal"); err != nil {
		t.Errorf("with a record: %v", err)
	}
}
