package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/disk"
	"gantry/internal/journal"
)

// ErrorFiles tell whoever waits for a machine why it does not come up: the first that is
// there. Each stage has its own: where the file server ends the machine does too, and both
// say so at the same time.
func ErrorFiles(podDir string) []string {
	return []string{errorFile(podDir, StageFiles), errorFile(podDir, StageBoot)}
}

func errorFile(podDir, stage string) string {
	if stage == StageFiles {
		return filepath.Join(podDir, "files-error")
	}
	return filepath.Join(podDir, "boot-error")
}

// saidLast stands before what the programs said.
const saidLast = "; it said: "

// NotUp leaves there why a stage of a machine's start failed, with the last that the unit's
// programs and the machine's console said.
func NotUp(ctx context.Context, podDir, stage string, why error) error {
	file, text := errorFile(podDir, stage), why.Error()
	// First without: to ask the journal takes its time, and we may be killed meanwhile.
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return errors.Join(why, err)
	}
	invocation := os.Getenv("INVOCATION_ID")
	if invocation == "" {
		return why
	}
	said, err := lastWords(ctx, invocation)
	switch {
	case err != nil:
		text += fmt.Sprintf(" (what it said is not known: %v)", err)
	case len(said) > 0:
		text += saidLast + strings.Join(said, " | ")
	default:
		return why
	}
	return errors.Join(why, disk.WriteFile(file, []byte(text), 0o600))
}

// The stages of a machine's start that programs of others have to come through.
const (
	StageFiles = "start the file server"
	StageBoot  = "boot the machine"
)

// outOfMemory is how a program ends that has more than the limit of its pod's cgroup lets
// it, or the host has.
const outOfMemory = "killed for want of memory on the host: see kvm.overhead and the overhead of the RuntimeClass"

// Down leaves there why the program of a stage has ended, unless that is known or was no
// failure. It is for the end of a unit, where systemd tells how that was: whoever waits for
// the program may have come too late, or was not started.
func Down(ctx context.Context, podDir, stage string) error {
	result := os.Getenv("SERVICE_RESULT")
	if result == "" || result == "success" {
		return nil
	}
	how := strings.TrimSpace(os.Getenv("EXIT_CODE") + " " + os.Getenv("EXIT_STATUS"))
	plain := slices.Contains([]string{"exit-code", "signal", "core-dump"}, result)
	switch {
	case result == "oom-kill":
		how = outOfMemory
	case !plain:
		how = strings.TrimSpace(result + " " + how)
	}
	told, err := os.ReadFile(errorFile(podDir, stage))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return NotUp(ctx, podDir, stage, fmt.Errorf("%s: %w (%s)", stage, errEnded, how))
	case err != nil:
		return err
	case !plain:
		told = fmt.Appendf(told, " (its unit: %s)", how)
	case strings.Contains(string(told), saidLast):
		return nil
	}
	// Whoever told it may have been ended before it could ask the journal.
	return NotUp(ctx, podDir, stage, errors.New(string(told)))
}

// lastWords are the last lines that processes of a unit wrote, those that matter first.
func lastWords(ctx context.Context, invocation string) ([]string, error) {
	const patience, most = 5 * time.Second, 100
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := journal.Sync(ctx); err != nil {
		return nil, err
	}
	var lines []string
	q := journal.Query{Match: []journal.Field{{Name: "_SYSTEMD_INVOCATION_ID", Value: invocation}}, Lines: most}
	err := journal.Read(ctx, q, func(e journal.Entry) error {
		lines = append(lines, e.Message())
		return nil
	})
	return telling(lines), err
}

// The words of lines that tell why: of the kernel, the agent, the emulator, the file server.
var reasons = [...]string{"Kernel panic", "Out of memory", "gantry-guest: ", "qemu-system-", "qemu: ", "virtiofsd", "ERROR"}

// telling picks a few lines: those with a reason, or else the last.
func telling(lines []string) []string {
	const most, length = 4, 240
	var all, why []string
	for _, l := range lines {
		l = strings.TrimSpace(strings.Map(func(c rune) rune {
			if c < ' ' || c == 0x7f {
				return ' '
			}
			return c
		}, l))
		if l == "" || slices.ContainsFunc([]string{StageFiles, StageBoot}, func(stage string) bool { return strings.HasPrefix(l, "gantry-guest: "+stage) }) {
			continue // that is what we say ourselves
		}
		if len(l) > length {
			l = strings.ToValidUTF8(l[:length], "") + "…"
		}
		all = append(all, l)
		if slices.ContainsFunc(reasons[:], func(word string) bool { return strings.Contains(l, word) }) {
			why = append(why, l)
		}
	}
	if len(why) == 0 {
		why = all
	}
	return why[max(0, len(why)-most):]
}

// errEnded is why nobody waits any longer for what a program was to do.
var errEnded = errors.New("its program has ended")

// whileRuns gives a context that ends with a process, 0 for none.
func whileRuns(ctx context.Context, pid int) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() { cancel(context.Canceled) }
	if pid <= 0 {
		return ctx, stop
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil { // it has ended, and was waited for
		cancel(errEnded)
		return ctx, stop
	}
	go func() {
		defer unix.Close(fd)
		const often = 200 // milliseconds
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, often)
			if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
				cancel(errEnded)
			}
		}
	}()
	return ctx, stop
}
