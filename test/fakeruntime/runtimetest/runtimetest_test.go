package runtimetest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be the runtime.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == Name {
		os.Exit(Main(os.Args, os.Environ()))
	}
	os.Exit(m.Run())
}

// fake runs the fake in front of a shell that plays the real runtime.
func fake(t *testing.T, s Script, args ...string) (*exec.Cmd, string) {
	t.Helper()
	dir := t.TempDir()
	script := filepath.Join(dir, "script.json")
	if err := Write(script, s); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, Name)); err != nil {
		t.Fatal(err)
	}
	argv := append([]string{script, "/bin/sh", "-c", `echo "real $*"; exit 3`, "sh"}, args...)
	return exec.Command(filepath.Join(dir, Name), argv...), script
}

func TestFake(t *testing.T) {
	t.Parallel()
	log := filepath.Join(t.TempDir(), "log")
	for name, c := range map[string]struct {
		script Script
		args   []string
		out    string
		code   int
		signal syscall.Signal
	}{
		"passes through":     {Script{}, []string{"create", "x"}, "real create x\n", 3, 0},
		"another subcommand": {Script{"start": {Fail: "no"}}, []string{"create", "x"}, "real create x\n", 3, 0},
		"fails":              {Script{"create": {Fail: "no"}}, []string{"create", "x"}, "fakeruntime: no\n", 1, 0},
		"fails into its log": {Script{"create": {Fail: "no"}}, []string{"--log", log, "create", "x"}, "", 1, 0},
		"dies":               {Script{"create": {Die: 9}}, []string{"create", "x"}, "", -1, syscall.SIGKILL},
		"forks":              {Script{"create": {Fork: 1}}, []string{"create", "x"}, "real create x\n", 3, 0},
		"after":              {Script{"create": {After: true, Fail: "no"}}, []string{"create", "x"}, "real create x\n", 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, script := fake(t, c.script, c.args...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != c.code {
				t.Fatalf("ended with %v, want code %d", err, c.code)
			}
			if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() && ws.Signal() != c.signal || ws.Signaled() != (c.signal != 0) {
				t.Errorf("ended with %v, want signal %d", err, c.signal)
			}
			if out.String() != c.out {
				t.Errorf("said %q, want %q", out.String(), c.out)
			}
			if got, err := Calls(script); err != nil || !slices.Equal(got, []string{"create"}) {
				t.Errorf("calls %v, %v", got, err)
			}
		})
	}
	t.Cleanup(func() {
		if said, err := os.ReadFile(log); err != nil || strings.TrimSpace(string(said)) != "no" {
			t.Errorf("the log has %q, %v", said, err)
		}
	})
}

func TestHangs(t *testing.T) {
	t.Parallel()
	cmd, script := fake(t, Script{"start": {Hang: true}}, "start", "x")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	limit := time.After(10 * time.Second)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for called := false; !called; {
		select {
		case err := <-ended:
			t.Fatalf("it came back: %v", err)
		case <-limit:
			t.Fatal("it was never called")
		case <-again.C:
			got, err := Calls(script)
			called = err == nil && len(got) == 1
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-ended
}
