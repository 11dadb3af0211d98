package engine

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/disk"
	"gantry/internal/isolator"
)

// outside is an exec whose command, a shell here, puts the process into its group itself.
func outside(t *testing.T, script string, s Streams) *execRun {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "exec-1")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+"/cgroup.kill", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	lock, err := disk.TryLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Unlock() })
	return &execRun{
		plan: isolator.Exec{
			Path: "/bin/sh", Args: []string{"sh", "-c", script, "sh", isolator.GroupArg, isolator.LogArg}, Group: isolator.AppGroup, Outside: true, Terminal: s.TTY,
		},
		group: &execGroup{path: dir, lock: lock}, streams: s, oomScore: 500, dir: t.TempDir(),
	}
}

func TestCommandOutsideOfTheGroup(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	code, err := outside(t, `cat; echo "$1"; exit 5`, Streams{Stdin: strings.NewReader("in\n"), Stdout: &out}).run(t.Context())
	if code != 5 || err != nil || out.String() != "in\nexec-1\n" {
		t.Errorf("%d, %v, %q", code, err, &out)
	}
}

// TestOnlyErrorsOfTheRuntime: a warning does not make an exit code an error of ours.
func TestOnlyErrorsOfTheRuntime(t *testing.T) {
	t.Parallel()
	code, err := outside(t, `echo 'time=now level=warning msg="well"' >>"$2"; exit 3`, Streams{}).run(t.Context())
	if code != 3 || err != nil {
		t.Errorf("after a warning: %d, %v", code, err)
	}
	_, err = outside(t, `echo 'level=warning msg="well"' >>"$2"; echo 'level=error msg="no such file"' >>"$2"; exit 255`, Streams{}).run(t.Context())
	if err == nil || !strings.Contains(err.Error(), `level=error msg="no such file"`) || strings.Contains(err.Error(), "well") {
		t.Errorf("after an error: %v", err)
	}
}

// TestTerminalOfOurOwn: the command has it, with its size, and it controls the command.
func TestTerminalOfOurOwn(t *testing.T) {
	t.Parallel()
	sizes := make(chan Size, 1)
	sizes <- Size{Width: 70, Height: 30}
	var out bytes.Buffer
	script := `trap 'stty size; exit 4' WINCH; stty size | grep -q 70 && kill -WINCH $$; while :; do sleep 0.1; done </dev/tty`
	code, err := outside(t, script, Streams{TTY: true, Stdout: &out, Resize: sizes}).run(t.Context())
	if code != 4 || err != nil || out.String() != "30 70\r\n" {
		t.Errorf("%d, %v, %q", code, err, &out)
	}
}

// TestCutOffOutsideOfTheGroup: the command is killed as well as the group.
func TestCutOffOutsideOfTheGroup(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r := outside(t, `sleep 1000 & sleep 1000`, Streams{})
	began := time.Now()
	_, err := r.run(ctx)
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 20*time.Second {
		t.Errorf("%v after %s", err, time.Since(began))
	}
	if data, err := os.ReadFile(r.group.path + "/cgroup.kill"); err != nil || string(data) != "1" {
		t.Errorf("cgroup.kill has %q, %v", data, err)
	}
}
