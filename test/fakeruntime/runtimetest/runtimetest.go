// Package runtimetest is an OCI runtime that misbehaves: it hangs, fails, dies or
// forks at the subcommands that a script names, and is the real runtime at all
// others. It drives the paths that a well-behaved runtime never takes.
//
// Its command line is that of the real one behind two words of its own:
//
//	fakeruntime SCRIPT /usr/bin/crun --root=/run/gantry/crun create …
//
// SCRIPT is a file that is read at every call; SCRIPT.calls lists the calls.
package runtimetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Name of the program, by which a test binary knows that it is to be it.
const Name = "fakeruntime"

// Script is what the runtime does, by subcommand: create, start, delete, exec,
// kill. One that is not there is the real runtime's.
type Script map[string]Step

// Step is what the runtime does for one subcommand. The fields work together and
// in this order.
type Step struct {
	// After lets the real runtime do its work first.
	After bool `json:"after,omitempty"`
	// Fork leaves a daemon behind, in a session of its own, that keeps the standard
	// output and error open for that many seconds.
	Fork int `json:"fork,omitempty"`
	// Hang never comes back.
	Hang bool `json:"hang,omitempty"`
	// Die ends the runtime by that signal.
	Die int `json:"die,omitempty"`
	// Fail is written to the log, or the standard error; the exit status is 1.
	Fail string `json:"fail,omitempty"`
}

// Write replaces a script in one step. The calls so far are forgotten.
func Write(path string, s Script) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.Remove(calls(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Calls lists the subcommands that were asked for since the script was written.
func Calls(path string) ([]string, error) {
	data, err := os.ReadFile(calls(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.Fields(string(data)), err
}

func calls(path string) string { return path + ".calls" }

// Main is the runtime. It returns the exit status, if it returns.
func Main(args, env []string) int {
	if len(args) < 3 {
		return broken(fmt.Errorf("usage: %s SCRIPT RUNTIME [ARGUMENT]", Name))
	}
	script, err := read(args[1])
	if err != nil {
		return broken(err)
	}
	command := subcommand(args[3:])
	if err := note(args[1], command); err != nil {
		return broken(err)
	}
	step, misbehaves := script[command]
	if !misbehaves {
		return broken(syscall.Exec(args[2], args[2:], env))
	}
	if step.After {
		if status := run(args[2:], env); status != 0 {
			return status
		}
	}
	return step.do(args, env)
}

func broken(err error) int {
	fmt.Fprintln(os.Stderr, Name+":", err)
	return 1
}

func read(path string) (Script, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s Script
	return s, json.Unmarshal(data, &s)
}

func subcommand(args []string) string {
	known := []string{"create", "start", "delete", "exec", "kill", "state", "run"}
	i := slices.IndexFunc(args, func(a string) bool { return slices.Contains(known, a) })
	if i < 0 {
		return ""
	}
	return args[i]
}

func note(path, command string) error {
	f, err := os.OpenFile(calls(path), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(command + "\n")
	return errors.Join(err, f.Close())
}

// run runs the real runtime with all that we have open: an exec gets files by
// their descriptors.
func run(argv, env []string) int {
	const most = 16
	files := make([]*os.File, most)
	for fd := range files {
		f := os.NewFile(uintptr(fd), "")
		if _, err := f.Stat(); err == nil {
			files[fd] = f
		}
	}
	p, err := os.StartProcess(argv[0], argv, &os.ProcAttr{Env: env, Files: files})
	if err != nil {
		return broken(err)
	}
	state, err := p.Wait()
	if err != nil {
		return broken(err)
	}
	return state.ExitCode()
}

func (s Step) do(args, env []string) int {
	if s.Fork > 0 {
		// Not a child of ours: the real runtime, which takes our place, would wait for it.
		shell := exec.Command("/bin/sh", "-c", fmt.Sprintf("sleep %d &", s.Fork))
		shell.Stdout, shell.Stderr = os.Stdout, os.Stderr
		shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := shell.Run(); err != nil {
			return broken(err)
		}
	}
	for s.Hang {
		time.Sleep(time.Hour)
	}
	if s.Die != 0 {
		_ = syscall.Kill(os.Getpid(), syscall.Signal(s.Die))
		time.Sleep(time.Minute)
	}
	if s.Fail != "" {
		return fail(args, s.Fail)
	}
	if s.After {
		return 0
	}
	return broken(syscall.Exec(args[2], args[2:], env))
}

// fail says why where the real runtime says it.
func fail(args []string, why string) int {
	if i := slices.Index(args, "--log"); i >= 0 && i+1 < len(args) {
		if err := os.WriteFile(args[i+1], []byte(why+"\n"), 0o644); err == nil {
			return 1
		}
	}
	return broken(errors.New(why))
}
