//go:build e2e

package node

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestCLI runs scripts of gantry commands as a user would. Each leaves nothing.
func TestCLI(t *testing.T) {
	guard(t)
	needsGantry(t)
	runScripts(t, "testdata/cli/*.txtar")
}

// TestCLIOfMachines is the same for pods that are virtual machines.
func TestCLIOfMachines(t *testing.T) {
	guard(t)
	needsGantry(t)
	withMachines(t)
	runScripts(t, "testdata/cli-kvm/*.txtar")
}

func runScripts(t *testing.T, pattern string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			guard(t)
			t.Cleanup(func() { removeCLIPods(t) })
			testscript.Run(t, testscript.Params{
				Files:               []string{file},
				RequireExplicitExec: true,
				Setup: func(e *testscript.Env) error {
					e.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": scriptCode, "until": scriptUntil},
			})
		})
	}
}

// removeCLIPods keeps a script that failed from failing all that follow.
func removeCLIPods(t *testing.T) {
	ids := sh(t, "gantry list --owner cli -q")
	if strings.TrimSpace(ids) != "" {
		if !t.Failed() {
			t.Errorf("pods are left: %s", ids)
		}
		sh(t, "gantry rm --force "+strings.Join(strings.Fields(ids), " "))
	}
}

// scriptCode runs a command and checks its exit code: "code 42 gantry run …".
func scriptCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N command...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// scriptUntil runs a shell command again and again until it succeeds.
func scriptUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: until 'shell command'")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience(20*time.Second))
	defer cancel()
	for {
		if ts.Exec("sh", "-c", args[0]) == nil {
			return
		}
		select {
		case <-ctx.Done():
			ts.Fatalf("never succeeded: %s", args[0])
		case <-time.After(100 * time.Millisecond):
		}
	}
}
