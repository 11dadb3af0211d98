//go:build e2e

package e2e

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/node"
	"gantry/internal/pod"
	"gantry/test/fakeruntime/runtimetest"
)

// badRuntime is a node whose OCI runtime does what a script says, and an app that
// must not notice.
type badRuntime struct {
	*node.Node
	script    string
	limit     time.Duration
	pod       *pod.Pod
	bystander *pod.App
	pid       int
}

// ownCgroup is one for what stays outside of apps, as gantry-cri has it from systemd.
func ownCgroup(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", "e2e-"+strings.ToLower(rand.Text()[:8]))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Errorf("the cgroup of what stays outside: %v; %s", err, sh(t, "systemd-cgls --no-pager "+dir))
		}
	})
	return dir
}

func newBadRuntime(t *testing.T) *badRuntime {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "e2e-runtime-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, runtimetest.Name)
	if err := os.Symlink(exe, program); err != nil {
		t.Fatal(err)
	}
	b := &badRuntime{script: filepath.Join(dir, "script.json"), limit: patience(time.Second)}
	b.set(t, runtimetest.Script{})
	b.Node, err = node.Open(t.Context(), node.Options{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), OwnCgroup: ownCgroup(t),
		Runtime: []string{program, b.script, "/usr/bin/crun", "--root=/run/gantry/crun", "--cgroup-manager=disabled"}, RuntimeTimeout: b.limit,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	pull(t, b.Node, busybox)
	b.pod = newPod(t, b.Node, hostNetwork)
	b.bystander = newApp(t, b.Node, b.pod, shell("echo up; exec sleep 1000000"))
	start(t, b.Node, b.bystander)
	// An app counts as started before its runtime is told to start it: what the
	// script says next is not for this one.
	says(t, b.bystander, "up")
	b.pid = b.running(t)
	return b
}

func (b *badRuntime) set(t *testing.T, s runtimetest.Script) {
	t.Helper()
	if err := runtimetest.Write(b.script, s); err != nil {
		t.Fatal(err)
	}
}

// running tells the bystander's process.
func (b *badRuntime) running(t *testing.T) int {
	t.Helper()
	s, err := b.App(b.bystander.ID)
	if err != nil || s.Phase != pod.Running {
		t.Errorf("the bystander is %s: %v", s.Phase, err)
	}
	return s.PID
}

// works shows that all is well once the fault is gone: an app runs and ends.
func (b *badRuntime) works(t *testing.T) {
	t.Helper()
	b.set(t, runtimetest.Script{})
	a := newApp(t, b.Node, b.pod, shell("exit 7"))
	start(t, b.Node, a)
	if s := wait(t, b.Node, a); s.Exit.Code != 7 {
		t.Errorf("once the fault is gone an app ends with %+v", s.Exit)
	}
	b.remove(t, a)
	b.nothingOf(t, a)
}

// nothingOf shows that nothing is left of an app and of what the runtime started,
// and that the bystander is the same.
func (b *badRuntime) nothingOf(t *testing.T, a *pod.App) {
	t.Helper()
	id := string(a.ID)
	left := sh(t, "ls -d /run/gantry/crun/"+id+" /run/gantry/exits/"+id+" 2>/dev/null; systemctl list-units --all --no-legend 'gantry-*"+id+"*'; find /sys/fs/cgroup -name '*"+id+"*' 2>/dev/null || true")
	if left += strays(t); left != "" {
		t.Errorf("left: %s", left)
	}
	if pid := b.running(t); pid != b.pid {
		t.Errorf("the bystander's process was %d and is %d", b.pid, pid)
	}
}

func (b *badRuntime) remove(t *testing.T, a *pod.App) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience(10*time.Second))
	defer cancel()
	if err := b.RemoveApp(ctx, a.ID); err != nil {
		t.Errorf("remove app: %v", err)
	}
}

// lasts is how long a child that a runtime or a plugin leaves behind would stay:
// for ever.
const lasts = 98765

func strays(t *testing.T) string {
	t.Helper()
	return sh(t, fmt.Sprintf("pgrep -f 'slee[p] %d' || true", lasts))
}

// TestRuntimeFails: a runtime that fails, dies or hangs when an app is created or
// started. The app reads StartError with the stage, the reason and the duration,
// in bounded time.
func TestRuntimeFails(t *testing.T) {
	guard(t)
	b := newBadRuntime(t)
	for name, c := range map[string]struct {
		script runtimetest.Script
		want   string
		later  bool // systemd was told already that the app is up
	}{
		"create fails":                  {runtimetest.Script{"create": {Fail: "no room on Mars"}}, "create container: fakeruntime create: exit status 1 (after ", false},
		"create dies":                   {runtimetest.Script{"create": {Die: 9}}, "create container: fakeruntime create: signal: killed (after ", false},
		"create dies after it was done": {runtimetest.Script{"create": {After: true, Die: 9}}, "create container: fakeruntime create: signal: killed", false},
		"create forks and fails":        {runtimetest.Script{"create": {Fork: lasts, Fail: "no"}}, "create container: fakeruntime create: exit status 1", false},
		"create hangs":                  {runtimetest.Script{"create": {Hang: true}}, "create container: fakeruntime create: killed: it took longer than " + b.limit.String(), false},
		"start fails":                   {runtimetest.Script{"start": {Fail: "not today"}}, "start container: fakeruntime start: exit status 1 (after ", true},
		"start dies":                    {runtimetest.Script{"start": {Die: 9}}, "start container: fakeruntime start: signal: killed", true},
		"start hangs":                   {runtimetest.Script{"start": {Hang: true, Fork: lasts}}, "start container: fakeruntime start: killed: it took longer than " + b.limit.String(), true},
	} {
		t.Run(name, func(t *testing.T) {
			b.set(t, c.script)
			a := newApp(t, b.Node, b.pod, shell("exit 7"))
			began := time.Now()
			err := b.StartApp(t.Context(), a.ID)
			if !c.later && (err == nil || !strings.Contains(err.Error(), "start app: unit: ") || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("start: %v, want %q", err, c.want)
			}
			s := wait(t, b.Node, a)
			t.Logf("%v; %+v, after %s", err, s.Exit, time.Since(began).Round(time.Millisecond))
			if s.Exit.Code != 128 || s.Exit.Reason != pod.ReasonStartError || !strings.Contains(s.Exit.Message, c.want) {
				t.Errorf("the app's end reads %+v, want %q", s.Exit, c.want)
			}
			if took := time.Since(began); took > b.limit+patience(2*time.Second) {
				t.Errorf("took %s", took)
			}
			b.remove(t, a)
			b.nothingOf(t, a)
		})
	}
	b.works(t)
}

// TestRuntimeForgetsNot: a runtime that misbehaves when it is to forget an app
// changes nothing about how the app ended, and nothing of it is left.
func TestRuntimeForgetsNot(t *testing.T) {
	guard(t)
	b := newBadRuntime(t)
	for name, step := range map[string]runtimetest.Step{
		"fails": {Fail: "I never forget"}, "dies": {Die: 9}, "hangs": {Hang: true}, "forks": {Fork: lasts}, "dies late": {After: true, Die: 9},
	} {
		t.Run(name, func(t *testing.T) {
			b.set(t, runtimetest.Script{"delete": step})
			a := newApp(t, b.Node, b.pod, shell("echo hello; exit 7"))
			start(t, b.Node, a)
			if s := wait(t, b.Node, a); s.Exit.Code != 7 || s.Exit.Reason != pod.ReasonError || output(t, a) != "hello\n" {
				t.Errorf("the app ended with %+v and wrote %q", s.Exit, output(t, a))
			}
			began := time.Now()
			b.remove(t, a)
			t.Logf("removed after %s", time.Since(began).Round(time.Millisecond))
			calls, err := runtimetest.Calls(b.script)
			if err != nil || !slices.Contains(calls, "delete") || slices.Contains(calls, "kill") {
				t.Errorf("calls %v, %v", calls, err)
			}
			b.nothingOf(t, a)
		})
	}
	b.works(t)
}

// TestRuntimeForks: a child that the runtime leaves behind with everything open
// neither keeps an app from starting nor from ending, and ends with it.
func TestRuntimeForks(t *testing.T) {
	guard(t)
	b := newBadRuntime(t)
	for _, command := range []string{"create", "start"} {
		t.Run(command, func(t *testing.T) {
			b.set(t, runtimetest.Script{command: {Fork: lasts}})
			a := newApp(t, b.Node, b.pod, shell("echo hello; exit 7"))
			start(t, b.Node, a)
			if s := wait(t, b.Node, a); s.Exit.Code != 7 || output(t, a) != "hello\n" {
				t.Errorf("the app ended with %+v and wrote %q", s.Exit, output(t, a))
			}
			b.remove(t, a)
			b.nothingOf(t, a)
		})
	}
	b.works(t)
}

// TestRuntimeExecFails: the same for a process in a running app.
func TestRuntimeExecFails(t *testing.T) {
	guard(t)
	b := newBadRuntime(t)
	exec := func(limit time.Duration) (int, error) {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		return b.Exec(ctx, b.bystander.ID, pod.Process{Argv: []string{"sh", "-c", "exit 5"}}, engine.Streams{Stdout: io.Discard, Stderr: io.Discard})
	}
	for name, c := range map[string]struct {
		step runtimetest.Step
		code int
		err  string
	}{
		"fails": {runtimetest.Step{Fail: "no exec"}, 0, "no exec"},
		"dies":  {runtimetest.Step{Die: 9}, 137, ""},
		"forks": {runtimetest.Step{Fork: lasts}, 5, ""},
		"hangs": {runtimetest.Step{Hang: true, Fork: lasts}, 0, "deadline"},
	} {
		t.Run(name, func(t *testing.T) {
			b.set(t, runtimetest.Script{"exec": c.step})
			began := time.Now()
			code, err := exec(b.limit)
			if code != c.code || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("code %d, %v; want %d, %q", code, err, c.code, c.err)
			}
			if err != nil && !strings.Contains(err.Error(), "(after ") {
				t.Errorf("no duration: %v", err)
			}
			if c.step.Hang && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("an exec that hung: %v", err)
			}
			if took := time.Since(began); took > b.limit+patience(2*time.Second) {
				t.Errorf("took %s", took)
			}
			b.set(t, runtimetest.Script{})
			if code, err := exec(b.limit); code != 5 || err != nil {
				t.Errorf("once the fault is gone: %d, %v", code, err)
			}
			if pid := b.running(t); pid != b.pid {
				t.Errorf("the app's process was %d and is %d", b.pid, pid)
			}
		})
	}
	b.remove(t, b.bystander)
	if left := strays(t); left != "" {
		t.Errorf("children of the runtime are left: %s", left)
	}
}
