package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/guest"
	"gantry/internal/pod"
	"gantry/internal/unit"
)

// EndFile, below the pod's directory, is the End of the pod's machine. Who is the first to
// end writes it: what ends after that ends of it.
const EndFile = "machine-end.json"

// End is how a machine ended.
type End struct {
	OOM     bool   `json:"oom,omitempty"` // the host killed it for memory
	Message string `json:"message"`
}

// exit is the end of an app whose machine has ended.
func (e End) exit() pod.Exit {
	out := pod.Exit{
		Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), Reason: pod.ReasonError, Message: e.Message, Finished: time.Now(),
	}
	if e.OOM {
		out.Reason = pod.ReasonOOMKilled
	}
	return out
}

// awaitEnd reads how a machine ended. That is written down at the same time as its apps
// learn of it.
func awaitEnd(ctx context.Context, podDir string) End {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	const often = 20 * time.Millisecond
	tick := time.NewTicker(often)
	defer tick.Stop()
	for {
		var e End
		if err := readJSON(filepath.Join(podDir, EndFile), &e); err == nil {
			return e
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return unrecorded(podDir)
		}
	}
}

// killedForMemory is how the host ends a machine that wants too much.
func killedForMemory(what string) End {
	return End{OOM: true, Message: what + " was killed for want of memory on the host"}
}

// unrecorded is the end of a machine of which nobody wrote. A machine that is killed for
// memory leaves none in its cgroup to who would write: others have the memory still.
func unrecorded(podDir string) End {
	var plan Plan
	if err := readJSON(filepath.Join(podDir, PlanFile), &plan); err == nil && oomKills(plan.Cgroup) > 0 {
		return killedForMemory("the pod's machine")
	}
	return End{Message: "the pod's machine does not answer"}
}

// oomKills is how many processes the host has killed for memory in a cgroup and below.
func oomKills(cgroup string) int {
	data, err := os.ReadFile(filepath.Join(cgroup, "memory.events"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, _ := strconv.Atoi(text) // none, if the kernel says something else
			return n
		}
	}
	return 0
}

// podDirOf is the directory of an app's pod.
func podDirOf(appDir string) string { return filepath.Dir(filepath.Dir(appDir)) }

// Outcome is what systemd says of a unit that has ended: $SERVICE_RESULT, $EXIT_CODE and
// $EXIT_STATUS.
type Outcome struct{ Result, Code, Status string }

func (o Outcome) killed() bool { return o.Result == "signal" || o.Result == "core-dump" }

func (o Outcome) failed(what, name string) string {
	return fmt.Sprintf("%s has ended (%s %s): see journalctl -u %s", what, o.Code, o.Status, name)
}

// RecordEnd writes down how a pod's machine ended, or the server of its files. It is run
// when the unit of either has.
func RecordEnd(ctx context.Context, podDir, name string, o Outcome) error {
	file := filepath.Join(podDir, EndFile)
	if disk.Exists(file) || !disk.Exists(podDir) {
		return nil
	}
	pod := filepath.Base(podDir)
	what, own := "the pod's machine", name == unit.Machine(pod)
	if !own {
		what = "the server of the pod's files"
	}
	var e End
	var unsure error // what kept us from knowing more
	switch {
	case o.Result == "oom-kill":
		e = killedForMemory(what)
	case o.killed():
		e.Message = fmt.Sprintf("%s has ended: killed by SIG%s", what, o.Status)
	case !own: // it ends as the machine does, and takes with it what the agent said
		var err error
		if e.Message, err = agentFailed(podDir); err != nil {
			return err
		}
		if e.Message == "" && o.Result == "exit-code" {
			e.Message = o.failed(what, name)
		}
		if e.Message == "" {
			return nil
		}
	case o.Result == "success":
		if e.Message, unsure = whyOff(ctx, podDir, name); e.Message == "" {
			return unsure
		}
	default:
		e.Message = o.failed(what, name)
	}
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return errors.Join(unsure, writeFirst(file, name, data))
}

// writeFirst writes a file whole, unless somebody was first. Who writes it may be killed: the
// two who may have parts of their own.
func writeFirst(file, who string, data []byte) error {
	part := file + "." + who
	if err := disk.WriteFile(part, data, 0o644); err != nil {
		return err
	}
	err := disk.Move(part, file)
	if errors.Is(err, os.ErrExist) {
		return os.Remove(part)
	}
	return err
}

// whyOff tells why a machine is off that nobody has killed: its agent has failed, its kernel
// has panicked, or its emulator was told to end.
func whyOff(ctx context.Context, podDir, name string) (string, error) {
	job, err := property(ctx, name, "Job")
	if err != nil {
		return "", err
	}
	if job != "" && job != "0" { // it was told to stop, by who stops the pod or by the end of the file server, which ends with it
		state, err := property(ctx, unit.Pod(filepath.Base(podDir)), "ActiveState")
		if err != nil {
			return "", err
		}
		if state != "active" {
			return "the pod was stopped", nil
		}
	}
	said, err := agentFailed(podDir)
	if said != "" || err != nil {
		return said, err
	}
	lines, err := consoleLines(ctx)
	has := func(words string) bool {
		return slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, words) })
	}
	switch {
	case has("Kernel panic"):
		said = "the kernel of the pod's machine panicked"
	case has("qemu-system-") && has("terminating on signal"):
		said = "the pod's machine was told to stop"
	default:
		said = "the pod's machine has ended"
	}
	return said + ": see journalctl -u " + name, err
}

// consoleLines are the last that a machine's console and its emulator said, in the unit that
// we end.
func consoleLines(ctx context.Context) ([]string, error) {
	invocation := os.Getenv("INVOCATION_ID")
	if invocation == "" {
		return nil, nil
	}
	return lastWords(ctx, invocation)
}

// agentFailed is "" if it has not.
func agentFailed(podDir string) (string, error) {
	var plan Plan
	if err := readJSON(filepath.Join(podDir, PlanFile), &plan); err != nil {
		return "", fmt.Errorf("read plan: %w", err)
	}
	said := agentWords(filepath.Join(plan.Run, ShareDir, guest.LastWordsFile))
	if said != "" {
		said = "the agent of the pod's machine has failed: " + said
	}
	return said, nil
}

// agentWords reads what a machine's agent said. It is the machine's, and may be anything.
func agentWords(path string) string {
	const most = 512
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	data := make([]byte, most)
	n, _ := f.Read(data) // none is as good as an error
	return clean(string(data[:n]))
}

// clean makes one short line of what a machine has said.
func clean(text string) string {
	const most = 1 << 10
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), most)], "?")))
}

// property asks systemd for one of a unit's.
func property(ctx context.Context, name, what string) (string, error) {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--value", "--property="+what, name).Output()
	var exited *exec.ExitError
	if errors.As(err, &exited) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exited.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("ask systemd for %s of %s: %w", what, name, err)
	}
	return strings.TrimSpace(string(out)), nil
}
