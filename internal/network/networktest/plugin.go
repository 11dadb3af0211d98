package networktest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Script is what a plugin does, by command. A command that is not there succeeds.
type Script struct {
	Versions []string        `json:"versions,omitempty"` // of the protocol; default: 0.3.1 to 1.0.0
	Log      string          `json:"log,omitempty"`      // a file that every call is appended to
	On       map[string]Step `json:"on,omitempty"`       // ADD, DEL, CHECK, STATUS, GC, VERSION
}

// Step is what a plugin does for one command. The fields work together and in
// this order.
type Step struct {
	// Times limits the step to the first calls; later ones succeed. 0: always.
	Times int `json:"times,omitempty"`
	// Stderr is written to the standard error.
	Stderr string `json:"stderr,omitempty"`
	// Fork leaves a daemon behind, in a session of its own, that keeps the standard
	// error and every inherited file open for that many seconds.
	Fork int `json:"fork,omitempty"`
	// Slow waits, in milliseconds.
	Slow int `json:"slow,omitempty"`
	// Hang never comes back.
	Hang bool `json:"hang,omitempty"`
	// Die ends the plugin by that signal.
	Die int `json:"die,omitempty"`
	// Print is written to the standard output as it is, instead of a result.
	Print *string `json:"print,omitempty"`
	// Flood writes that many bytes to the standard output.
	Flood int `json:"flood,omitempty"`
	// Code and Msg are a CNI error. A Code without a Msg is an exit status alone.
	Code int    `json:"code,omitempty"`
	Msg  string `json:"msg,omitempty"`
	// Result is printed by ADD; without it, prevResult, or a made up one.
	Result json.RawMessage `json:"result,omitempty"`
}

// Call is one line of the log.
type Call struct {
	Plugin  string          `json:"plugin"`
	Command string          `json:"command"`
	ID      string          `json:"id"`
	NetNS   string          `json:"netns"`
	IfName  string          `json:"ifname"`
	Args    string          `json:"args"`
	Stdin   json.RawMessage `json:"stdin"`
	PID     int             `json:"pid"`
	Notify  string          `json:"notify,omitempty"` // NOTIFY_SOCKET, which must not be there
	Group   int             `json:"group"`
}

// Install makes a plugin of that name in dir: a link to a binary whose main calls
// Main, and its script.
func Install(dir, name, binary string, s Script) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), data, 0o644); err != nil {
		return err
	}
	if err := os.Symlink(binary, filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// Calls reads a log.
func Calls(log string) ([]Call, error) {
	data, err := os.ReadFile(log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var calls []Call
	for line := range strings.Lines(string(data)) {
		var c Call
		if err := json.Unmarshal([]byte(line), &c); err != nil {
			return nil, fmt.Errorf("%s: %w", log, err)
		}
		calls = append(calls, c)
	}
	return calls, nil
}

// Main is the plugin. It returns the exit status.
func Main() int {
	stdin, err := io.ReadAll(os.Stdin)
	if err != nil {
		return fail(5, err.Error())
	}
	script, err := readScript(os.Args[0] + ".json")
	if err != nil {
		return fail(5, err.Error())
	}
	command := os.Getenv("CNI_COMMAND")
	if err := logCall(script.Log, command, stdin); err != nil {
		return fail(5, err.Error())
	}
	step := script.On[command]
	if step.Times > 0 && countCalls(script.Log, command) > step.Times {
		step = Step{}
	}
	return step.do(command, script, stdin)
}

func readScript(path string) (Script, error) {
	var s Script
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

func logCall(path, command string, stdin []byte) error {
	if path == "" {
		return nil
	}
	c := Call{
		Plugin: filepath.Base(os.Args[0]), Command: command, ID: os.Getenv("CNI_CONTAINERID"), NetNS: os.Getenv("CNI_NETNS"),
		IfName: os.Getenv("CNI_IFNAME"), Args: os.Getenv("CNI_ARGS"), Stdin: stdin, PID: os.Getpid(),
		Notify: os.Getenv("NOTIFY_SOCKET"), Group: syscall.Getpgrp(),
	}
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(append(line, '\n'))
	return err
}

func countCalls(path, command string) int {
	calls, _ := Calls(path)
	n := 0
	for _, c := range calls {
		if c.Command == command && c.Plugin == filepath.Base(os.Args[0]) {
			n++
		}
	}
	return n
}

func (s Step) do(command string, script Script, stdin []byte) int {
	fmt.Fprint(os.Stderr, s.Stderr)
	if s.Fork > 0 {
		daemon := exec.Command("sleep", fmt.Sprint(s.Fork))
		daemon.Stderr = os.Stderr
		daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := daemon.Start(); err != nil {
			return fail(5, err.Error())
		}
	}
	time.Sleep(time.Duration(s.Slow) * time.Millisecond)
	for s.Hang {
		time.Sleep(time.Hour)
	}
	if s.Die != 0 {
		_ = syscall.Kill(os.Getpid(), syscall.Signal(s.Die))
		time.Sleep(time.Second)
	}
	if s.Flood > 0 {
		fmt.Print(strings.Repeat("x", s.Flood))
	}
	switch {
	case s.Print != nil:
		fmt.Print(*s.Print)
		return s.Code
	case s.Msg != "":
		return fail(s.Code, s.Msg)
	case s.Code != 0:
		return s.Code
	}
	switch command {
	case "VERSION":
		v := script.Versions
		if v == nil {
			v = []string{"0.3.1", "0.4.0", "1.0.0"}
		}
		return print(map[string]any{"cniVersion": "1.0.0", "supportedVersions": v})
	case "ADD":
		return s.add(stdin)
	}
	return 0
}

func (s Step) add(stdin []byte) int {
	if s.Result != nil {
		return print(s.Result)
	}
	var conf struct {
		CNIVersion string          `json:"cniVersion"`
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return fail(6, err.Error())
	}
	if conf.PrevResult != nil {
		return print(conf.PrevResult)
	}
	return print(map[string]any{
		"cniVersion": conf.CNIVersion,
		"interfaces": []any{
			map[string]any{"name": "br0", "mac": "02:00:00:00:00:01"},
			map[string]any{"name": os.Getenv("CNI_IFNAME"), "mac": "02:00:00:00:00:02", "sandbox": os.Getenv("CNI_NETNS")},
		},
		"ips": []any{map[string]any{"version": "4", "interface": 1, "address": "10.88.0.5/24", "gateway": "10.88.0.1"}},
	})
}

func print(v any) int {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		return 1
	}
	return 0
}

func fail(code int, msg string) int {
	print(map[string]any{"cniVersion": "1.0.0", "code": code, "msg": msg})
	return 1
}
