package initproc

import (
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

func TestExitOf(t *testing.T) {
	t.Parallel()
	run := &pod.Run{Started: time.Unix(1000, 0)}
	for name, c := range map[string]struct {
		facts  facts
		code   int
		signal int
		reason string
	}{
		"exit 0":                          {facts{code: "exited", status: "0", result: "success", run: run}, 0, 0, pod.ReasonCompleted},
		"exit 42":                         {facts{code: "exited", status: "42", result: "exit-code", run: run}, 42, 0, pod.ReasonError},
		"exit 255":                        {facts{code: "exited", status: "255", result: "exit-code", run: run}, 255, 0, pod.ReasonError},
		"killed by TERM reads success":    {facts{code: "killed", status: "TERM", result: "success", run: run}, 143, 15, pod.ReasonError},
		"killed":                          {facts{code: "killed", status: "KILL", result: "signal", run: run}, 137, 9, pod.ReasonError},
		"killed by a real-time signal":    {facts{code: "killed", status: "RTMIN+3", result: "signal", run: run}, 165, 37, pod.ReasonError},
		"killed by the last signal":       {facts{code: "killed", status: "RTMIN+30", result: "signal", run: run}, 192, 64, pod.ReasonError},
		"killed by one without a name":    {facts{code: "killed", status: "33", result: "signal", run: run}, 161, 33, pod.ReasonError},
		"dumped":                          {facts{code: "dumped", status: "SEGV", result: "core-dump", run: run}, 139, 11, pod.ReasonError},
		"out of memory":                   {facts{code: "killed", status: "KILL", result: "oom-kill", run: run}, 137, 9, pod.ReasonOOMKilled},
		"memory, told by the kernel only": {facts{code: "killed", status: "KILL", result: "signal", oomKills: 1, run: run}, 137, 9, pod.ReasonOOMKilled},
		"a child was killed for memory, the app then failed": {facts{code: "exited", status: "1", result: "exit-code", oomKills: 1, run: run}, 1, 0, pod.ReasonOOMKilled},
		"a child was killed for memory, the app ended well":  {facts{code: "exited", status: "0", result: "success", oomKills: 1, run: run}, 0, 0, pod.ReasonCompleted},
		"the runtime could not create it":                    {facts{code: "exited", status: "1", result: "exit-code", startError: "no such file"}, 128, 0, pod.ReasonStartError},
		"the runtime could not start it":                     {facts{code: "killed", status: "KILL", result: "signal", run: run, startError: "x"}, 128, 0, pod.ReasonStartError},
		"killed while it waited to be started":               {facts{code: "killed", status: "KILL", result: "signal", run: run, died: "x"}, 137, 9, pod.ReasonError},
		"memory ran out while it waited":                     {facts{code: "killed", status: "KILL", result: "oom-kill", run: run, died: "x"}, 137, 9, pod.ReasonOOMKilled},
		"it could not execute what it was to run":            {facts{code: "exited", status: "1", result: "exit-code", run: run, died: "x"}, 128, 0, pod.ReasonStartError},
		"no memory to start in":                              {facts{code: "killed", status: "KILL", result: "oom-kill", oomKills: 1}, 137, 9, pod.ReasonOOMKilled},
		"cut short":                                          {facts{code: "killed", status: "TERM", result: "timeout"}, 128, 0, pod.ReasonStartError},
		"systemd could not tell":                             {facts{result: "resources", run: run}, pod.ExitCodeUnknown, 0, pod.ReasonUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := exitOf(c.facts)
			if got.Code != c.code || got.Signal != c.signal || got.Reason != c.reason {
				t.Errorf("code %d signal %d reason %s; want %d %d %s (%s)", got.Code, got.Signal, got.Reason, c.code, c.signal, c.reason, got.Message)
			}
			if got.Reason == pod.ReasonStartError && got.Message == "" {
				t.Error("a start error without a message")
			}
		})
	}
}

// TestEnded: a process that waits, one that nobody has reaped, and none.
func TestEnded(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	if ended(pid) {
		t.Error("a process that sleeps has ended")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !ended(pid) {
		t.Error("a zombie has not ended")
	}
	_ = cmd.Wait()
	if !ended(pid) {
		t.Error("a process that is no more has not ended")
	}
}

func FuzzParseOOMKills(f *testing.F) {
	f.Add([]byte("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"))
	f.Fuzz(func(t *testing.T, data []byte) { parseOOMKills(data) })
}

func TestParseOOMKills(t *testing.T) {
	t.Parallel()
	if n := parseOOMKills([]byte("low 0\noom 1\noom_kill 2\noom_group_kill 7\n")); n != 2 {
		t.Errorf("got %d, want 2", n)
	}
}

// TestEndElsewhere: an app that another program ends is recorded by that, or by what systemd
// says; as long as it goes on there is no end.
func TestEndElsewhere(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string
		last   bool
		goesOn bool
	}{
		"it runs on":         {`test "$1" = signal && exit 75`, false, true},
		"nothing follows":    {`test "$1" = signal && exit 75; exit 0`, true, false},
		"it cannot be ended": {"exit 1", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := Start{End: []string{"/bin/sh", "-c", c.script, "sh"}}
			if got := s.end("signal", c.last); got != c.goesOn {
				t.Errorf("it goes on: %t", got)
			}
		})
	}
}
