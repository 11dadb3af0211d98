package initproc

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/pod"
)

// drainTime bounds how long an exit waits for the app's last output to reach its
// log. A daemon that inherited the app's stdout must not hold the exit for ever.
const drainTime = 2 * time.Second

// exited runs when systemd has seen the end of an app. It may be killed at any
// moment (it runs in the app's cgroup) and is run twice: every step does nothing
// if it is done already. The record comes first, since nothing else can tell.
func exited(dir string) error {
	liftCPU()
	return finish(dir, "", oomKills())
}

// exitedOutside runs in a unit of its own, outside the pod's slice, when the two
// others were killed: it is what the app's OnFailure= names. The app's cgroup is
// gone by then, but systemd has seen whether memory was the reason.
func exitedOutside(app string) error {
	if _, err := pod.ParseID(app); err != nil {
		return err
	}
	pods := filepath.Join(StateRoot, "pods")
	entries, err := os.ReadDir(pods)
	if err != nil {
		return fmt.Errorf("find app %s: %w", app, err)
	}
	for _, entry := range entries {
		if dir := filepath.Join(pods, entry.Name(), "apps", app); disk.Exists(dir) {
			return finish(dir, "MONITOR_", 0)
		}
	}
	return nil // it was removed
}

func finish(dir, env string, kills int) error {
	if !disk.Exists(dir) {
		return nil // the app was removed before all of its processes had died
	}
	s, planErr := readStart(dir)
	if len(s.End) > 0 && !HasEnded(dir) {
		if s.end(os.Getenv(env+"SERVICE_RESULT"), env != "") {
			return nil
		}
	}
	if err := recordExit(dir, env, kills); err != nil {
		return err
	}
	if planErr != nil {
		return fmt.Errorf("read plan: %w", planErr)
	}
	err := drain(s.Stdio, s.App, drainTime)
	return errors.Join(err, spool(s.App, dir), cleanRuntime(s))
}

// recordExit writes the record, unless there is one. env begins the names of the
// variables in which systemd tells of the end.
func recordExit(dir, env string, kills int) error {
	path := filepath.Join(dir, exitFile)
	if disk.Exists(path) {
		return nil
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	e := exitOf(facts{
		code: os.Getenv(env + "EXIT_CODE"), status: os.Getenv(env + "EXIT_STATUS"), result: os.Getenv(env + "SERVICE_RESULT"),
		oomKills: kills, run: runRecord(dir), startError: readMessage(dir, startErrorFile), died: readMessage(dir, startDiedFile),
	})
	e.Finished, e.BootID, e.InvocationID = time.Now(), boot, os.Getenv(env+"INVOCATION_ID")
	record, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("record exit: %w", err)
	}
	return disk.WriteReserved(path, filepath.Join(dir, reserveFile), record, 0o644)
}

// GoesOn is the exit code of a Start.End that found nothing to end.
const GoesOn = 75

// endTime bounds how long an app may take to be ended by another program.
const endTime = 25 * time.Second

// end has an app ended whose processes are not the unit's. Last tells that the unit is
// down for good.
func (s Start) end(result string, last bool) (goesOn bool) {
	if last {
		result = ""
	}
	cmd := exec.Command(s.End[0], append(slices.Clone(s.End[1:]), result)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err := within(cmd, endTime)
	var status *exec.ExitError
	if errors.As(err, &status) && status.ExitCode() == GoesOn {
		return true
	}
	if err != nil { // what is known of the end is recorded all the same
		fmt.Fprintln(os.Stderr, "end the app:", err)
	}
	return false
}

func readMessage(dir, file string) string {
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return string(data)
}

// facts are what systemd and the kernel say about the end of an app.
type facts struct {
	code, status, result string // $EXIT_CODE, $EXIT_STATUS, $SERVICE_RESULT
	oomKills             int
	run                  *pod.Run
	startError           string // why the runtime did not start it
	died                 string // the same, where it had ended before it was to start
}

// exitOf turns facts into a record. $SERVICE_RESULT is success for a TERM, HUP,
// INT or PIPE, so the code and status decide; the result only tells of memory.
func exitOf(f facts) pod.Exit {
	if f.code == "exited" && f.startError == "" {
		f.startError = f.died // by its own doing: what it was to run cannot be run
	}
	if f.run == nil || f.startError != "" {
		return notStarted(f)
	}
	e := pod.Exit{Started: f.run.Started}
	switch f.code {
	case "exited":
		e.Code, _ = strconv.Atoi(f.status)
	case "killed", "dumped":
		e.Signal = signalOf(f.status)
		e.Code = 128 + e.Signal
	default:
		e.Code, e.Message = pod.ExitCodeUnknown, fmt.Sprintf("systemd gave no exit status (result %q)", f.result)
	}
	e.Reason = reason(e, f)
	return e
}

// realtime is the first real-time signal, as glibc and so systemd count them.
const realtime = 34

// signalOf reads a signal as systemd writes it: KILL, RTMIN+3, or a bare number.
func signalOf(name string) int {
	if offset, ok := strings.CutPrefix(name, "RTMIN+"); ok {
		if n, err := strconv.Atoi(offset); err == nil && n >= 0 && realtime+n <= 64 {
			return realtime + n
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return n
	}
	return int(unix.SignalNum("SIG" + name))
}

func reason(e pod.Exit, f facts) string {
	switch {
	case f.result == "oom-kill", f.oomKills > 0 && e.Code != 0:
		return pod.ReasonOOMKilled
	case f.code != "exited" && e.Signal == 0:
		return pod.ReasonUnknown
	case e.Code == 0:
		return pod.ReasonCompleted
	default:
		return pod.ReasonError
	}
}

func notStarted(f facts) pod.Exit {
	e := pod.Exit{Code: pod.ExitCodeStartError, Reason: pod.ReasonStartError, Message: f.startError}
	if f.run != nil {
		e.Started = f.run.Started
	}
	switch {
	case f.oomKills > 0 || f.result == "oom-kill":
		e.Code, e.Signal, e.Reason = 128+int(unix.SIGKILL), int(unix.SIGKILL), pod.ReasonOOMKilled
		e.Message = "the memory limit is too small to start in"
	case e.Message == "":
		e.Message = fmt.Sprintf("the start was cut short (result %q, %s %s)", f.result, f.code, f.status)
	}
	return e
}

// spool tells the watchers of the spool directory.
func spool(app, dir string) error {
	if err := os.MkdirAll(Exits, 0o755); err != nil {
		return fmt.Errorf("tell of the exit: %w", err)
	}
	tmp := filepath.Join(RunRoot, ".exit-"+app)
	if err := os.WriteFile(tmp, []byte(dir+"\n"), 0o644); err != nil {
		return fmt.Errorf("tell of the exit: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(Exits, app)); err != nil {
		return fmt.Errorf("tell of the exit: %w", err)
	}
	return nil
}

// cleanRuntime lets the OCI runtime forget the container, of which no process is
// left: systemd has killed them all before it runs us.
func cleanRuntime(s Start) error {
	switch {
	case s.Program:
		return nil
	case s.Self == nil:
	case s.Self.OnHost:
		return UnmountRootfs(s.Rootfs.Target)
	default:
		return nil
	}
	if s.State != "" {
		return os.RemoveAll(s.State)
	}
	if dir, err := unitCgroup(); err == nil && s.Group != "" {
		liftMemory(dir) // of the app nothing is left that it could let grow
	}
	return runtimeOf(s).run(deleteTime, nil, "delete", "--force", s.App)
}
